"""What the parts of a variant's name mean, in a few sentences each: the text beside the rungs of a ladder (grammar: docs/naming.md)."""

# What an algorithm is, where it wins and what it costs.
ALGORITHMS = {
    "ref": (
        "The plain loops of the definition: one multiplication after the other, one thread, no vectors. It is what all others "
        "are checked against, and what the compiler makes of an honest formula. Every operand is fetched from wherever it lies, "
        "again for each use."
    ),
    "igemm": (
        "Implicit matrix product: the convolution is a product of the weights with the matrix of all windows, but that matrix "
        "is never written. Tiles of it are gathered while the product runs, so a tile of outputs stays in registers while "
        "inputs stream by. It serves every shape."
    ),
    "igemm_serial": (
        "Hopper's tensor cores, first rung: the tensor memory accelerator brings 64 channels of a tap for 128 pixels and 128 output "
        "channels, the block waits, multiplies by wgmma, waits, and asks for the next. Nothing overlaps but what the second block of the "
        "multiprocessor does. Predicted: a copy's latency (some 1000 clocks) against 512 of products, so below half of the roof."
    ),
    "igemm_specialised": (
        "One warp does nothing but copy, up to six steps ahead, and two groups of four warps do nothing but multiply; barriers in shared "
        "memory hand the steps over. Products no longer wait for copies, but every tile still begins with an empty pipeline and ends with "
        "a store that nothing hides: predicted some 2500 clocks a tile beside 512 a step."
    ),
    "igemm_sm90a": (
        "The specialised kernel made persistent: as many blocks as multiprocessors, each of which stays for several tiles, so that the "
        "next tile's copies arrive under the end of the last. Predicted: bound by the second-level cache, which would have to feed a "
        "128 x 128 tile with 12 TB/s at the tensor cores' full speed. Before a batch norm in training it takes mean and variance of its "
        "outputs from the sums that a tile still holds: 1024 clocks of conversions to double for 128 x 128, predicted, against 2074 of "
        "reading them anew."
    ),
    "igemm_multicast": (
        "Pairs of blocks, a cluster, make tiles that need the same weights: each copies half of them, to both. 128 pixels x 256 output "
        "channels then take 6.2 TB/s from the second-level cache at the tensor cores' full speed, half of what 128 x 128 alone takes. "
        "A stage is free again only when both blocks are done with it. In a weight gradient they share gradients: 24 KB a step instead of "
        "32, 527 clocks of copies beside 512 of products, predicted, instead of 703."
    ),
    "igemm_pingpong": (
        "Each of the two multiplying groups has a tile of its own and they take turns: one multiplies while the other stores. For short "
        "sums, 1x1 kernels above all, where the store of a tile takes as long as its products; bound by memory then, not by arithmetic."
    ),
    "igemm_planned": (
        "The persistent kernel in whichever tile and cluster a model of products, cache, shared memory and waves finds fastest: 256 x 64 "
        "for few output channels, pairs of 128 x 256 for many, small tiles for small layers."
    ),
    "igemm_tf32": (
        "Float32 on tensor cores, rounded to tf32 on its way into shared memory: 11 bits of mantissa, sums in float32, half the speed of "
        "16-bit numbers and twice their bytes."
    ),
    "igemm_tf32x3": (
        "Float32 as the sum of two tf32 numbers and three of their four products: the accuracy of float32 for three times the work of "
        "tf32. Tensor cores truncate where they add, so each step's sums are added by ordinary arithmetic."
    ),
    "halo_3x3": (
        "3x3 windows of stride 1 on a GPU: the pixels that a tile's nine taps reach are read into shared memory once, where an implicit "
        "product reads them nine times, and the weights stay there. Operands of images go through registers, since a tap moves them by "
        "pixels; a line of them serves two lines of outputs. Predicted for 64 channels on 56x56, 64 images, on an H200 (not measured): "
        "19 us of products and 12 us of memory, 24 to 26 us in all, against 40 us of an implicit product that waits for the L2 cache."
    ),
    "igemm_splitk": (
        "The implicit matrix product where pixels are few and sums long, so that there are fewer tiles than multiprocessors: the "
        "sum is cut into segments, a block for each, whose float results a second kernel adds in order. The cut depends on the "
        "layer alone; in a large batch one block makes all segments of a tile, so an image has the same bits in any. Predicted "
        "for 512 channels at 7 x 7, one image: 8 tiles of 144 steps become 144 blocks of 8, about 6 us instead of 30; the bytes "
        "of the weights alone take 1."
    ),
    "igemm_pairs": (
        "The implicit matrix product for the first layer of a network, whose three channels would fill three of the eight numbers that "
        "a 16-byte chunk holds. Four channels of two neighbouring pixels are one chunk instead, and a stride of 2 becomes one of 1: a 7x7 "
        "kernel is 7 x 4 chunks, 224 products where there were 392, of 147 that count. Predicted for 3 to 64 channels at 224, batch 64, "
        "16-bit: 28 us of memory traffic, plus 20 for packing, beside products that take about 50 instead of 90."
    ),
    "igemm_phases": (
        "The input gradient of a convolution with a stride, which is a transposed convolution: outputs whose places agree modulo "
        "the stride form a phase, and each phase is a convolution of stride 1 with those taps that meet whole inputs. No zeros "
        "are multiplied: stride 2 has a quarter of the products that inserted zeros would cost. Predicted for 3x3, 128 channels, "
        "28 to 56, batch 64, in 16-bit numbers: 19 us of products; 37 us with what the second-level cache delivers and the ends "
        "of tiles. Four phases share a launch: 512 channels, 7 to 14, are 400 tiles for 132 multiprocessors instead of four times 100, "
        "26 us instead of 34."
    ),
    "im2col": (
        "The matrix of windows is written out, then multiplied. The copy costs memory traffic of kernel height times kernel "
        "width, and buys long, dense rows, which pays where rows are wide and channels few."
    ),
    "winograd2": (
        "Winograd's F(2x2, 3x3): four outputs of a 3x3 window from 16 multiplications instead of 36. Inputs, weights and "
        "outputs are transformed by additions; in between stand 16 matrix products."
    ),
    "winograd4": (
        "Winograd's F(4x4, 3x3): 16 outputs from 36 multiplications instead of 144. Fewer multiplications than F(2x2), larger "
        "transforms, and constants that cost some accuracy."
    ),
    "winograd4_bf16x3": (
        "F(4x4) with its 36 matrix products on AMX tiles, each factor in two bfloat16 parts: a quarter of the products, and each of "
        "them as cheap as tiles make it, so transforms and bytes take half of the time. Transformed weights are four times the bytes "
        "of the direct kernel's: maps of 14 x 14 and less take that one. The transforms amplify what the parts leave out 7 times."
    ),
    "winograd4x2": (
        "Winograd's F(4x2, 3x3): eight outputs from 24 multiplications instead of 72, a compromise between the accuracy of "
        "F(2x2) and the speed of F(4x4)."
    ),
    "depthwise": (
        "Each channel has its own small filter, so there is no sum over channels to reuse inputs in: the kernel slides along "
        "rows and is bound by memory."
    ),
    "small_groups": (
        "Depthwise, and groups of a few channels: vectors along the channels, and a row of outputs at a time, whose inputs are "
        "loaded once per line of the kernel and held in registers for all its taps. Memory bounds small kernels, multiply-adds large ones. "
        "Weight gradients hold the sums instead: all lanes of a group see one channel's gradient, and none is idle."
    ),
    "subpixel": (
        "Sub-pixel convolution: the outputs of all phases of a strided input gradient, or transposed convolution, are the channels of one "
        "ordinary convolution, whose result is interleaved; at stride 1, those of a block of pixels. Some of its weights are zeros, but "
        "three channels at stride 2 fill twelve lanes of a vector: 16 products for each cell and channel of a 7x7 kernel instead of 49."
    ),
    "exchanged": (
        "A weight gradient is a product of the input, seen through every tap, and the gradient, over all pixels. With stride 1 the two may "
        "change places, the taps in reverse: where outputs are few, nine copies of one channel are packed instead of nine of 64."
    ),
    "wide_stride": (
        "A transposed convolution with a wide stride spreads each input over many outputs, and neighbouring outputs take neighbouring "
        "weights: vectors along the weights of a kernel's line need no packing, where a product per residue of the stride would have few "
        "pixels and its weights far apart."
    ),
    "gemm": "A matrix product in tiles that stay in registers, with operands packed so that every load is a full vector.",
    "rows": "Row by row: neighbours in a row share vectors, the work is split by rows.",
    "channels": (
        "Channel by channel within a pixel: in channels-last memory the channels of a pixel are one dense run, and every vector is full."
    ),
    "planes": (
        "Pooling of small row-major maps: blocks of planes are turned into channels, pooled as such, and turned back. Rows of a small map "
        "fill no vector, and finding its windows costs more than reading them: planes share both."
    ),
    "window": "One output, one window, read straight from memory.",
    "bands": (
        "Two ops whose map in between is never written: a band of input rows that fits a cache is normalised by the one, and pooled from "
        "there by the other. Each element is normalised once but for the rows that two bands' windows share, by the same loops as alone, "
        "so to the same bits; of a row-major tensor a channel follows right behind its statistics, from the cache. Batch norm, ReLU and a "
        "3x3 pooling of stride 2 write the map, read it again and write a quarter of it; this writes the quarter."
    ),
    "strips": (
        "The same on a GPU, in one kernel. A thread keeps the constants of 16 bytes of channels in registers and walks down a column of "
        "outputs; a row of inputs that two windows share is normalised once for both. Row-major planes are brought into shared memory, "
        "normalised on the way, and looked through there. Predicted for the stem of ResNet-50, 256 images, 16-bit, on an H200 (not "
        "measured): 131 us of memory beside about 140 us of arithmetic, where normalising and pooling one after the other move 322 us."
    ),
    "gather": (
        "Every place collects what belongs to it, instead of every source adding to its targets: no two threads write the same place."
    ),
    "scatter": "Every source writes its target.",
    "partials": (
        "Every source adds to its target, in one pass over memory; blocks of sources have targets of their own, which are added in order, "
        "so that the bits do not depend on threads."
    ),
    "chan": (
        "One pass with running sums of value and square around a shift (Chan's method), merged pairwise: memory is read once, "
        "and large means cost no digits."
    ),
    "two_pass": "A first pass for the statistics, a second for the result.",
    "twopass": "A first pass for the sums, a second for the result.",
    "threepass": "Maximum, sum of exponentials, result: three passes over a row that stays in the cache, safe for scores of any size.",
    "onepass": "Everything in one pass over memory.",
    "fused": "Maximum, exponentials, logarithm and loss of a row in one go: the matrix of probabilities is never written.",
    "chunked": (
        "The product with the classifier's weights in chunks of classes, whose losses are folded together: the matrix of scores "
        "is never written."
    ),
    "columns": (
        "The product with the classifier's weights in chunks of rows, with the classes where rows would be: the large matrix streams by "
        "once, cut into parts on its way, the small one is packed, and the loss runs down columns."
    ),
    "tile": "Distances of a tile of rows against a tile of rows, kept in registers while coordinates stream by.",
    "bytes": "Unsigned bytes are compared sixteen, thirty-two or sixty-four at a time, in integer arithmetic that is exact.",
    "product": (
        "The squared distance as |a|^2 + |b|^2 - 2ab: the sums over the coordinates are a matrix product. In floats it cancels; "
        "of bytes every term is an integer, and the distance comes out exact: by VNNI on a CPU, by integer tensor cores on a "
        "GPU (10,000 x 50,000 x 3072 on an H200: predicted floor 1.9 ms)."
    ),
    "filter": (
        "A first look by a bounded product, in 16-bit arithmetic where the CPU has it, throws out whoever cannot be among the "
        "nearest; the rest are measured exactly."
    ),
    "filter_sm80": (
        "The filter on a GPU's tensor cores: bfloat16 products (16-bit points as they lie) bound every distance from both "
        "sides, and a warp sums one pair in each lane whenever 32 have passed, so that lists hold exact distances only. What "
        "changed against lists: of two instructions per coordinate and pair, all but the survivors' become one step of a matrix "
        "product. Predicted for an H200, 10,000 x 1,000,000 x 128: floor 3.2 ms at wgmma's speed, about 5 at mma.sync's; direct "
        "sums need 86."
    ),
    "filter_bf16x3": (
        "The filter with float32 split into two bfloat16 numbers and three products: bounds some fifty times tighter at 128 "
        "coordinates, for points whose neighbours differ by less than bfloat16 can tell. Beyond a thousand coordinates what the "
        "tensor cores may lose in long sums is all that the bounds see. Predicted floor three times the filter's."
    ),
    "minimum": (
        "The filter for the one nearest (the step of k-means): the least upper bound of a query stays in registers, so that a "
        "tile's points are looked at one by one only where its minimum comes near. Predicted for an H200, 1,000,000 x 4096 x "
        "128: floor 1.3 ms, about 2.1 by mma.sync."
    ),
    "sum": "Sums along rows in vectors, then across.",
    "elementwise": "Every element once, in vectors.",
    "registers": "A chain of multiply-adds that never leaves the registers.",
    "add": "A chain of additions in the registers of every thread of a GPU.",
    "multiply_add": "A chain of multiply-adds in the registers of every thread of a GPU.",
    "tiles": "A chain of products of tiles in the matrix registers of a CPU, AMX: nothing is loaded in between.",
    "dots": "A chain of dot products of pairs of 16-bit numbers in vector registers.",
    "mma": "A chain of matrix products of one warp, mma.sync, in registers.",
    "wgmma": "Matrix products of a warpgroup, wgmma, whose operands stand in shared memory.",
    "ldmatrix": "One tile of a matrix product, its operands loaded by ldmatrix: what the instructions do, number by number.",
    "transposed": "The same tile with an operand that ldmatrix transposes.",
    "stmatrix": "The same tile after stmatrix has written an operand from registers to shared memory.",
    "tf32": "The same tile of numbers rounded to tf32.",
    "copy": "A copy, in vectors.",
    "squares": "Squares of a vector's width are transposed in registers, in blocks that stay in the second-level cache.",
    "block": "One block of threads for each row.",
    "column": "One thread for each column.",
    "element": "One thread for each element.",
    "channel": "One thread for each channel.",
    "direct": "One thread for each output: the definition, on a GPU.",
    "tiled": "A matrix product of tiles in shared memory, four by four sums to a thread, on the GPU's plain arithmetic units.",
    "warp": "One warp for each row, which stays in its registers.",
    "staged": "A row is read once into shared memory; maximum, sum and result are taken from there.",
    "cluster": "A row is spread over the shared memory of several blocks of a cluster, so that long ones too are read only once.",
    "online": "Maximum and sum in one pass that rescales the sum whenever the maximum grows; a second pass writes the result.",
    "lists": "Each thread keeps a list of its nearest in shared memory; the lists of a query are merged in the end.",
    "select": "Distances to memory in slices, and the k smallest by their bits, digit by digit: any k.",
}

ISAS = {
    "portable": "Baseline instructions, which every CPU of this architecture has: vectors of 16 bytes, no fused multiply-add.",
    "avx2": (
        "AVX2: vectors of 32 bytes and fused multiply-add, two operations per instruction and lane; 16 registers bound the size of a tile."
    ),
    "avx512": "AVX-512: vectors of 64 bytes, 32 registers, and masks that take the tails of rows without a second loop.",
    "avx512vnni": "AVX-512 with VNNI: products of bytes summed in 32-bit integers, four multiply-adds per lane, nothing rounded.",
    "avx512bf16": "AVX-512 with bfloat16: products of pairs of 16-bit numbers summed in float32, two multiply-adds per lane.",
    "amx": "AMX: matrix registers of 1 KiB; one instruction multiplies tiles of 16 rows by 64 bytes.",
}
