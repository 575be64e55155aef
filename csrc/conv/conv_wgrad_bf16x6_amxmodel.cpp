// The kernel of conv_wgrad_bf16x6_amx.cpp on the software model of the tiles.
#define FASTCV_TILE_MODEL
#include "conv/conv_wgrad_bf16x6_amx.cpp"
