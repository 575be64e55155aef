// Kernels with one planted bug each and their right twins, and instructions against plain loops: prints what the
// emulator says of each (planted.h). One file for each kind.
#include "planted_block.h"
#include "planted_clusters.h"
#include "planted_copies.h"
#include "planted_group_products.h"
#include "planted_warp_products.h"

int main() {
  using namespace fastcv::emulated;
  show_block();
  show_copies();
  show_clusters();
  show_warp_products();
  show_group_products();
}
