// step_chain on AMX tiles: one product of tiles adds 32 products of 1 and 1/32 to each of 256 sums. The instruction
// takes 16 cycles and its result is there after 52: four tiles of sums keep it busy.
#include "roof/probes.h"

#include "common/amx.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int64_t kTile = 16 * 16, kTiles = 4, kRow = 64;  // sums of a tile, tiles, bytes of a row

// The same number everywhere, so it does not matter how pairs lie.
struct Operand {
  alignas(64) uint16_t numbers[16 * 32];
  explicit Operand(uint16_t bf16_bits) {
    for (uint16_t& number : numbers) number = bf16_bits;
  }
};

}  // namespace

void chain_tiles_bf16(const StepChainParams& p, const Exec& exec) {
  const Operand one(0x3f80), part(0x3d00);  // 1 and 1/32
  parallel_for(exec, p.n / (kTiles * kTile), 1, [&](int64_t begin, int64_t end) {
    Tiles::fence();
    const TileSession session;
    Tiles::load<4>(one.numbers, kRow);
    Tiles::load<5>(part.numbers, kRow);
    for (int64_t i = begin * kTiles * kTile; i < end * kTiles * kTile; i += kTiles * kTile) {
      const float* x = p.x + i;
      float* y = p.y + i;
      Tiles::load<0>(x, kRow), Tiles::load<1>(x + kTile, kRow);
      Tiles::load<2>(x + 2 * kTile, kRow), Tiles::load<3>(x + 3 * kTile, kRow);
      for (int64_t s = 0; s < p.steps; ++s) {
        Tiles::multiply_add_bf16<0, 4, 5>(), Tiles::multiply_add_bf16<1, 4, 5>();
        Tiles::multiply_add_bf16<2, 4, 5>(), Tiles::multiply_add_bf16<3, 4, 5>();
      }
      Tiles::store<0>(y, kRow), Tiles::store<1>(y + kTile, kRow);
      Tiles::store<2>(y + 2 * kTile, kRow), Tiles::store<3>(y + 3 * kTile, kRow);
    }
  });
}

}  // namespace fastcv::FASTCV_ISA
