// knn_filter_amx.cpp on the software model of the tiles.
#define FASTCV_TILE_MODEL
#include "neighbors/knn_filter_amx.cpp"
