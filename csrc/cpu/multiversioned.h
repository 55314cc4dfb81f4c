// Clones of a function for vector units beyond the baseline of x86-64, of which the loader chooses one.
#pragma once

// For a function whose loops the compiler vectorises. All clones do the same operations in the same order, so their
// results are the same. Measured: a fifth of the time of the adjoint of a large matrix.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CONV2AFFINE_MULTIVERSIONED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CONV2AFFINE_MULTIVERSIONED
#endif
