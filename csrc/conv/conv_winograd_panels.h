// What a Winograd convolution multiplies: panels of tiles by blocks of outputs, over a chunk of channels.
#pragma once
#include "conv/conv_winograd_tiles.h"

namespace fastcv::FASTCV_ISA {

// Consecutive tiles and their transformed inputs, panel by panel for each point.
struct WinogradBlock {
  int64_t tile, count, panels, rows, longer;  // the first `longer` panels have rows + 1
  float* v;
  int64_t v_point;
  WinogradTile* tiles;
  int rows_of(int64_t panel) const { return static_cast<int>(rows + (panel < longer)); }
  int64_t first_of(int64_t panel) const { return panel * rows + least(panel, longer); }
  int64_t panel_of(int64_t i) const {
    const int64_t whole = longer * (rows + 1);
    return i < whole ? i / (rows + 1) : longer + (i - whole) / rows;
  }
};

// The sums of panels [first, last) for `width` outputs, over the channels c0 .. c0 + channels.
struct WinogradProduct {
  const WinogradBlock& block;
  int64_t first, last, points, c_padded, c0, channels, width;
  int64_t u_point;  // between the weights of two points
  float* sums;      // [point][block of outputs][tile of the panels][pitch]
  int64_t s_point;
  const float* taps_ahead;  // of the next chunk, two runs taps_step apart, fetched meanwhile; nullptr: none
  int64_t taps_step;
};

}  // namespace fastcv::FASTCV_ISA
