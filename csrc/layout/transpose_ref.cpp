#include "layout/transpose.h"

#include <cstring>

namespace fastcv {

void transpose_ref(const TransposeParams& p, const Exec&) {
  const char* x = static_cast<const char*>(p.x);
  char* y = static_cast<char*>(p.y);
  for (int64_t i = 0; i < p.n; ++i)
    for (int64_t r = 0; r < p.rows; ++r)
      for (int64_t c = 0; c < p.columns; ++c)
        std::memcpy(y + ((i * p.columns + c) * p.rows + r) * p.bytes, x + ((i * p.rows + r) * p.columns + c) * p.bytes,
                    static_cast<size_t>(p.bytes));
}

}  // namespace fastcv
