// linear_cross_entropy_amx.cpp on the software model of the tiles.
#define FASTCV_TILE_MODEL
#include "loss/linear_cross_entropy_amx.cpp"
