// The kernel of conv_subpixel_amx.cpp on the software model of the tiles.
#include "conv/conv_subpixel_amx.cpp"
