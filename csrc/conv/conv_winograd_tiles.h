// The tiles of a Winograd convolution, and the windows of images that belong to them.
//
// Outputs are cut into tiles of MH x MW pixels, which a dilation spreads: the tiles of one of dilation^2 "phases" hold
// every dilation-th row and column. Tiles are numbered image by image and line by line; a line runs through all phases
// of the width. A window of a tile has one pixel per point or output, `dilation` apart, zeros outside the image.
//
// Row-major images pass through bands: some lines of tiles of one vector of channels, transposed in the first cache.
#pragma once
#include "conv/conv_plan.h"
#include "conv/conv_tile.h"

namespace fastcv::FASTCV_ISA {

struct WinogradTile {
  int64_t image, y, x;  // its first output
};

// Tiles that share a band: whole lines of tiles, one below the other, or a part of one line.
struct WinogradBand {
  int64_t lines, tiles, first, width;  // tiles of each line; the first tile's x; columns of outputs
};

template <int MH, int MW>
struct WinogradTiles {
  static constexpr int M[2] = {MH, MW};
  static constexpr int64_t kBandTiles = 8, kBandLines = 3;

  int64_t out[2], dilation[2];
  // Along the height and the width: the phases that have outputs, tiles of a phase.
  int64_t phases[2], lines[2];
  int64_t line, count;  // tiles of a line, of everything

  WinogradTiles(int64_t images, const int64_t (&out3)[3], const int64_t (&dilation3)[3]) {
    for (int i = 0; i < 2; ++i) {
      out[i] = out3[1 + i];
      dilation[i] = dilation3[1 + i];
      phases[i] = least(dilation[i], out[i]);
      lines[i] = ceil_div(ceil_div(out[i], dilation[i]), M[i]);
    }
    line = phases[1] * lines[1];
    count = images * phases[0] * lines[0] * line;
  }

  // Where a line's phases interleave in a band, row-major images are read by whole lines.
  int64_t unit(bool channels_last) const { return dilation[1] > 1 && !channels_last ? line : 1; }

  void list(int64_t tile, int64_t tiles, WinogradTile* table) const {
    WinogradTile at{};
    for (int64_t i = 0; i < tiles; ++i, ++tile) {
      const int64_t in_line = tile % line;
      if (i == 0 || in_line == 0) {
        const int64_t l = tile / line % (phases[0] * lines[0]);
        at.image = tile / line / (phases[0] * lines[0]);
        at.y = l / lines[0] + dilation[0] * MH * (l % lines[0]);
      }
      at.x = in_line / lines[1] + dilation[1] * MW * (in_line % lines[1]);
      table[i] = at;
    }
  }

  // How many outputs of a tile exist along a dim.
  int64_t outputs(int i, int64_t first) const {
    return first >= out[i] ? 0 : least(M[i], ceil_div(out[i] - first, dilation[i]));
  }

  // The band of at most `most_tiles` per line, kBandTiles or less, that starts at tile `tile`, which is first in the
  // table, of `left` tiles.
  WinogradBand band(const WinogradTile* table, int64_t tile, int64_t left, int64_t most_tiles) const {
    const int64_t in_line = tile % line;
    WinogradBand band{1, least(line - in_line, left), table->x, 0};
    if (dilation[1] == 1) {
      if (line <= most_tiles && band.tiles == line)
        band.lines = least(least(kBandLines, left / line), lines[0] - tile / line % lines[0]);
      band.tiles = least(band.tiles, most_tiles);
      band.width = MW * band.tiles;
    } else {
      band.width = phases[1] + dilation[1] * (MW * lines[1] - 1);
    }
    return band;
  }

  // Pixels of the longest band of windows of H x W.
  template <int H, int W>
  int64_t band_pixels() const {
    const int64_t columns =
        dilation[1] == 1 ? MW * kBandTiles + W - MW : phases[1] + dilation[1] * (MW * lines[1] + W - MW - 1);
    return (MH * kBandLines + H - MH) * most(columns, out[1]);
  }
};

// What the windows are taken from.
struct WinogradImages {
  const float* x;
  int64_t channels, size[2];  // of all groups; height and width
  int64_t origin[2];          // a window's first pixel, from its tile's first output
  bool channels_last;
};

// Asks for the lines of an H x W window, which may lie outside of the image.
template <int H, int W, bool to_write>
FASTCV_INLINE void fetch_window(const float* x, int64_t row, int64_t column) {
#pragma GCC unroll 6
  for (int r = 0; r < H; ++r)
#pragma GCC unroll 6
    for (int c = 0; c < W; ++c) __builtin_prefetch(x + r * row + c * column, to_write, 3);
}

// next(x, row, column) for the `channels` channels at `channel`, at most a vector, of the tiles [begin, end) of the
// table, whose first is `tile`: pixel (i, j) of the H x W window is the vector at x + i * row + j * column.
// The buffer has room for band_pixels() vectors, or for a window of a channels_last image.
template <int H, int W, int MH, int MW, class F>
static void winograd_windows(const WinogradTiles<MH, MW>& tiles, const WinogradImages& images, int64_t channel,
                             int channels, const WinogradTile* table, int64_t tile, int64_t begin, int64_t end,
                             float* buffer, F&& next) {
  constexpr int L = Vec<float>::width;
  const int64_t in_height = images.size[0], in_width = images.size[1];
  const auto& dilation = tiles.dilation;
  if (images.channels_last) {
    const int64_t column = dilation[1] * images.channels, row = dilation[0] * in_width * images.channels;
    for (int64_t i = begin; i < end; ++i) {
      const WinogradTile& t = table[i];
      const int64_t iy = t.y + images.origin[0], ix = t.x + images.origin[1];
      const float* from = images.x + channel + ((t.image * in_height + iy) * in_width + ix) * images.channels;
      if (channels == L && iy >= 0 && ix >= 0 && iy + (H - 1) * dilation[0] < in_height &&
          ix + (W - 1) * dilation[1] < in_width) {
        fetch_window<H, MW, false>(from + W * column, row, column);  // what the next tile adds to this one
        next(from, row, column);
        continue;
      }
      for (int r = 0; r < H; ++r)
        for (int s = 0; s < W; ++s) {
          const int64_t ny = iy + r * dilation[0], nx = ix + s * dilation[1];
          const bool exists = ny >= 0 && ny < in_height && nx >= 0 && nx < in_width;
          store(buffer + (r * W + s) * L, exists ? load_n(from + r * row + s * column, channels) : Vec<float>(0.0f));
        }
      next(buffer, W * L, L);
    }
    return;
  }
  const int64_t plane = in_height * in_width;
  for (int64_t i = begin; i < end;) {
    const WinogradTile& t = table[i];
    // A vector of columns holds eight tiles of 2, and one tile less where windows overlap: so do two, of tiles of 4.
    const WinogradBand band = tiles.band(table + i, tile + i, end - i, tiles.kBandTiles - (W > MW));
    const float* x = images.x + (t.image * images.channels + channel) * plane;
    const int64_t rows = MH * band.lines + H - MH, columns = band.width + (W - MW) * dilation[1];
    const int64_t ix = band.first + images.origin[1];
    const int64_t lo = least(columns, most(0, -ix)), hi = most(lo, least(columns, in_width - ix));
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t iy = t.y + images.origin[0] + r * dilation[0];
      float* out = buffer + r * columns * L;
      const bool exists = iy >= 0 && iy < in_height;
      const int64_t from = exists ? lo : columns, to = exists ? hi : columns;
      for (int64_t j = 0; j < from; ++j) store(out + j * L, Vec<float>(0.0f));
      for (int64_t j = from; j < to; j += L) {
        const int n = static_cast<int>(least(L, to - j));
        Vec<float> square[L];
        load_square(square, x + iy * in_width + ix + j, plane, channels, n);
        if (n == L) {
#pragma GCC unroll 16
          for (int m = 0; m < L; ++m) store(out + (j + m) * L, square[m]);
        } else {
          for (int m = 0; m < n; ++m) store(out + (j + m) * L, square[m]);
        }
      }
      for (int64_t j = to; j < columns; ++j) store(out + j * L, Vec<float>(0.0f));
    }
    for (int64_t l = 0; l < band.lines; ++l)
      for (int64_t j = 0; j < band.tiles; ++j, ++i)
        next(buffer + (l * MH * columns + table[i].x - band.first) * L, columns * L, dilation[1] * L);
  }
}

}  // namespace fastcv::FASTCV_ISA
