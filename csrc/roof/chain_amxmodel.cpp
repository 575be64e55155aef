// The kernel of chain_amx.cpp on the software model of the tiles.
#define FASTCV_TILE_MODEL
#include "roof/chain_amx.cpp"
