// The kernels of conv_winograd_amx.cpp on the software model of the tiles.
#define FASTCV_TILE_MODEL
#include "conv/conv_winograd_amx.cpp"
