/* Attention with products in int8, for processors with AVX-512 VNNI.
 *
 * softmax(scale * Q K^T) V for Q, K and V of shape [rows, tokens, heads * dim]. Q and K are rounded to int8 with
 * a scale for each query and one for each block of keys, after the mean of the keys was subtracted, which does not
 * change the softmax (SageAttention, Zhang et al. 2024). The maximum and the sum of the weights are kept while blocks of
 * keys are visited (FlashAttention, Dao et al. 2022), so that scores never leave the first-level cache.
 *
 * Where the processor multiplies bf16, weights and V are rounded to bf16, and their products are summed in float32.
 * Elsewhere weights are rounded to 8 bits with 254 for the largest weight so far of a query, and V to int8 with a scale
 * for each channel; sums are exact in int32. On Zen 5 this takes an eighth less time (39 ms in place of 45), and it
 * loses accuracy where small weights decide: thousands beside a large one are rounded by several percent each.
 *
 * A vector holds 16 queries: maxima, exponentials and sums need no operation across lanes.
 */
#define _GNU_SOURCE /* sched_setaffinity */
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__)

#include <immintrin.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#define VNNI __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#define INLINE static inline __attribute__((always_inline))

enum {
  LANES = 16,
  QUERIES = 2 * LANES, /* queries of a tile */
  KEYS = 12,           /* keys of a register block: 24 accumulators */
  BLOCK = 10 * KEYS,   /* keys between two updates of the maximum; scores take 15 KB */
  MAX_DIM = 256,
  MAX_THREADS = 64,
  OFFSET = 128 /* makes queries unsigned, as VNNI demands of one factor */
};
static const int32_t LOWEST = -(1 << 30);

typedef struct {
  const void *q, *k, *v; /* float32, or bf16 where `is_bf16` */
  void *out;
  int64_t rows, queries, keys, heads, dim;
  float scale;
  int64_t parts; /* parts of the queries of a head that are worked on by themselves */
  int64_t next;  /* next part of work */
  int failed, is_wide, is_bf16;
  cpu_set_t processors;
} Call;

/* Keys and values of a head. `start` holds what a score begins with: -OFFSET times the sum of the key, or LOWEST for a
 * key that only fills the last register block. `poison` is 0, or NaN where a key or a value is not finite. */
typedef struct {
  int8_t *k; /* [keys][dim] */
  void *v;   /* bf16 [keys / 2][dim][2], or int8 [keys / 4][dim][4] */
  int32_t *start;
  float *k_scale; /* of each block of keys */
  float v_scale[MAX_DIM], poison, largest_k_scale;
  int64_t keys;
} Packed;

INLINE __m128 absolute(__m128 x) { return _mm_andnot_ps(_mm_set1_ps(-0.f), x); }

INLINE float largest(__m128 x) {
  x = _mm_max_ps(x, _mm_shuffle_ps(x, x, 0x4e));
  return _mm_cvtss_f32(_mm_max_ps(x, _mm_shuffle_ps(x, x, 0xb1)));
}

/* sums + four products of unsigned and signed bytes in each lane. As intrinsics, GCC 12 keeps the sums in memory. */
VNNI INLINE __m512i add_products(__m512i sums, __m512i bytes, __m512i signed_bytes) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(bytes), "v"(signed_bytes));
  return sums;
}

/* sums + two products of bf16 in each lane. */
VNNI INLINE __m512 add_wide_products(__m512 sums, __m512i pairs, __m512i other_pairs) {
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(pairs), "v"(other_pairs));
  return sums;
}

/* The bf16 next to a float. */
INLINE uint16_t to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Four values from place `i` on of a tensor of float32 or bf16. */
INLINE __m128 load_four(const void *tensor, int64_t i, const int is_bf16) {
  if (!is_bf16) return _mm_loadu_ps((const float *)tensor + i);
  const __m128i halves = _mm_loadl_epi64((const __m128i *)((const uint16_t *)tensor + i));
  return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), halves));
}

INLINE float step_of(float top) { return top > 0 ? top / 127.f : 1.f; }

VNNI INLINE void pack(const Call *call, int64_t row, int64_t head, Packed *packed, const int is_wide,
                      const int is_bf16) {
  const int64_t dim = call->dim, count = call->keys, stride = call->heads * dim;
  const int64_t place = row * count * stride + head * dim; /* of the first key and the first value */
  float mean[MAX_DIM] = {0}, top[MAX_DIM] = {0}, inverse[MAX_DIM];
  __m128 poison = _mm_setzero_ps();
  for (int64_t i = 0; i < count; i++)
    for (int64_t d = 0; d < dim; d += 4) {
      const __m128 key = load_four(call->k, place + i * stride + d, is_bf16);
      const __m128 value = load_four(call->v, place + i * stride + d, is_bf16);
      poison = _mm_add_ps(poison, _mm_mul_ps(_mm_add_ps(key, value), _mm_setzero_ps()));
      _mm_storeu_ps(mean + d, _mm_add_ps(_mm_loadu_ps(mean + d), key));
      _mm_storeu_ps(top + d, _mm_max_ps(_mm_loadu_ps(top + d), absolute(value)));
    }
  packed->poison = poison[0] + poison[1] + poison[2] + poison[3];
  for (int64_t d = 0; d < dim; d++) {
    mean[d] /= (float)count;
    packed->v_scale[d] = is_wide ? 1.f : step_of(top[d]);
    inverse[d] = 1.f / packed->v_scale[d];
  }
  memset(packed->k, 0, packed->keys * dim);
  memset(packed->v, 0, packed->keys * dim * (is_wide ? 2 : 1));
  for (int64_t i = count; i < packed->keys; i++) packed->start[i] = LOWEST;
  packed->largest_k_scale = 0;
  for (int64_t first = 0; first < count; first += BLOCK) {
    const int64_t end = first + BLOCK < count ? first + BLOCK : count;
    __m128 most = _mm_setzero_ps();
    for (int64_t i = first; i < end; i++)
      for (int64_t d = 0; d < dim; d += 4) {
        const __m128 key = _mm_sub_ps(load_four(call->k, place + i * stride + d, is_bf16), _mm_loadu_ps(mean + d));
        most = _mm_max_ps(most, absolute(key));
      }
    const float step = step_of(largest(most));
    packed->k_scale[first / BLOCK] = step;
    if (step > packed->largest_k_scale) packed->largest_k_scale = step;
    for (int64_t i = first; i < end; i++) {
      __m128i sum = _mm_setzero_si128();
      for (int64_t d = 0; d < dim; d += 4) {
        const __m128 key = _mm_sub_ps(load_four(call->k, place + i * stride + d, is_bf16), _mm_loadu_ps(mean + d));
        const __m128i rounded = _mm_cvtps_epi32(_mm_mul_ps(key, _mm_set1_ps(1.f / step)));
        sum = _mm_add_epi32(sum, rounded);
        _mm_storeu_si32(packed->k + i * dim + d, _mm_cvtepi32_epi8(rounded));
      }
      sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
      sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
      packed->start[i] = -OFFSET * _mm_cvtsi128_si32(sum);
    }
  }
  for (int64_t i = 0; i < count; i++) {
    const int64_t from = place + i * stride;
    if (is_wide) {
      uint16_t *to = (uint16_t *)packed->v + (i & ~INT64_C(1)) * dim + (i & 1);
      for (int64_t d = 0; d < dim; d++)
        to[2 * d] = is_bf16 ? ((const uint16_t *)call->v)[from + d] : to_bf16(((const float *)call->v)[from + d]);
    } else {
      int8_t *to = (int8_t *)packed->v + (i & ~INT64_C(3)) * dim + (i & 3);
      for (int64_t d = 0; d < dim; d += 4) {
        const __m128 value = load_four(call->v, from + d, is_bf16);
        const __m128i four = _mm_cvtps_epi32(_mm_mul_ps(value, _mm_loadu_ps(inverse + d)));
        to[4 * d] = (int8_t)_mm_extract_epi32(four, 0);
        to[4 * d + 4] = (int8_t)_mm_extract_epi32(four, 1);
        to[4 * d + 8] = (int8_t)_mm_extract_epi32(four, 2);
        to[4 * d + 12] = (int8_t)_mm_extract_epi32(four, 3);
      }
    }
  }
}

/* 2^x by a polynomial of degree 4 on [-0.5, 0.5] and a change of the exponent; relative error 4e-6. */
VNNI INLINE __m512 exp2_vector(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 part = _mm512_sub_ps(x, whole);
  __m512 y = _mm512_fmadd_ps(_mm512_set1_ps(0.00961813f), part, _mm512_set1_ps(0.05550411f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.24022651f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.69314718f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(1.f));
  return _mm512_scalef_ps(y, whole);
}

/* 2^(score * scale + shift). Degree 3 has a relative error of 1e-4, less than the rounding of weights. */
VNNI INLINE __m512 weight_of(const int32_t *scores, __m512 scale, __m512 shift) {
  const __m512 x = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(scores)), scale, shift);
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 part = _mm512_sub_ps(x, whole);
  __m512 y = _mm512_fmadd_ps(_mm512_set1_ps(0.05550411f), part, _mm512_set1_ps(0.24022651f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.69314718f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(1.f));
  return _mm512_scalef_ps(y, whole);
}

/* Weights of four keys rounded to integers of 0 to 255, [QUERIES / 2][4]; they are added to `added`. */
VNNI INLINE void round_weights(const int32_t *scores, __m512 scale, __m512 shift, uint8_t *weights, __m512i *added) {
  const __m512i a = _mm512_cvtps_epi32(weight_of(scores, scale, shift));
  const __m512i b = _mm512_cvtps_epi32(weight_of(scores + QUERIES, scale, shift));
  const __m512i c = _mm512_cvtps_epi32(weight_of(scores + 2 * QUERIES, scale, shift));
  const __m512i d = _mm512_cvtps_epi32(weight_of(scores + 3 * QUERIES, scale, shift));
  const __m512i low = _mm512_or_si512(a, _mm512_slli_epi32(b, 8));
  const __m512i high = _mm512_or_si512(_mm512_slli_epi32(c, 16), _mm512_slli_epi32(d, 24));
  const __m512i four = _mm512_or_si512(low, high);
  *added = add_products(*added, four, _mm512_set1_epi8(1));
  _mm512_store_si512(weights, four);
}

/* Mantissas of 2^(i / 64) as bf16, rounded. */
static const uint16_t MANTISSAS[64] __attribute__((aligned(64))) = {
    0,  1,  3,  4,  6,  7,  9,  10, 12, 13, 15, 16, 18, 19,  21,  23,  24,  26,  28,  29,  31,  33,
    34, 36, 38, 40, 42, 43, 45, 47, 49, 51, 53, 55, 57, 59,  61,  63,  65,  67,  69,  72,  74,  76,
    78, 80, 83, 85, 87, 90, 92, 94, 97, 99, 102, 104, 107, 109, 112, 115, 117, 120, 123, 125};

/* 127 + 1.5 * 2^17. A float between 2^17 and 2^18 counts 64ths in its lowest bits, so that the low half of the bits of
 * x + GRID is 64 * (127 + x), rounded: a biased exponent and an index of MANTISSAS. */
#define GRID 196735.f

/* Weights of two keys in bf16, [QUERIES / 2][2]: 2^x with x = score * scale + shift - GRID, rounded to 64ths; they are
 * added to `added`. */
VNNI INLINE void look_up_weights(const int32_t *scores, __m512 scale, __m512 shift, uint16_t *weights, __m512 *added) {
  const __m512 least = _mm512_set1_ps(GRID - 126.f);
  const __m512 a = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(scores)), scale, shift);
  const __m512 b = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(scores + QUERIES)), scale, shift);
  const __m512i low = _mm512_castps_si512(_mm512_max_ps(a, least));
  const __m512i high = _mm512_slli_epi32(_mm512_castps_si512(_mm512_max_ps(b, least)), 16);
  const __m512i both = _mm512_mask_blend_epi16(0xaaaaaaaa, low, high);
  const __m512i table = _mm512_load_si512(MANTISSAS), rest = _mm512_load_si512(MANTISSAS + 32);
  const __m512i mantissas = _mm512_permutex2var_epi16(table, both, rest);
  const __m512i exponents = _mm512_set1_epi16((int16_t)0xff80);
  const __m512i two = _mm512_ternarylogic_epi32(_mm512_add_epi16(both, both), exponents, mantissas, 0xea); /* a & b | c */
  *added = add_wide_products(*added, two, _mm512_set1_epi32(0x3f803f80)); /* 1 and 1 */
  _mm512_store_si512(weights, two);
}

/* Scores of `count` keys from `first` on, a multiple of KEYS: [count][QUERIES]; `top` is raised to the largest. */
VNNI INLINE void score_keys(const uint8_t *q, const Packed *packed, int64_t first, int64_t count, const int64_t dim,
                            int32_t *scores, __m512i top[2]) {
  for (int64_t key = first; key < first + count; key += KEYS) {
    __m512i sums[KEYS][2];
    const int8_t *k = packed->k + key * dim;
#pragma GCC unroll 12
    for (int i = 0; i < KEYS; i++) sums[i][0] = sums[i][1] = _mm512_set1_epi32(packed->start[key + i]);
    for (int64_t d = 0; d < dim; d += 4) {
      const __m512i left = _mm512_load_si512(q + d * QUERIES), right = _mm512_load_si512(q + d * QUERIES + 4 * LANES);
#pragma GCC unroll 12
      for (int i = 0; i < KEYS; i++) {
        int32_t four;
        memcpy(&four, k + i * dim + d, 4);
        sums[i][0] = add_products(sums[i][0], left, _mm512_set1_epi32(four));
        sums[i][1] = add_products(sums[i][1], right, _mm512_set1_epi32(four));
      }
    }
#pragma GCC unroll 12
    for (int i = 0; i < KEYS; i++)
      for (int half = 0; half < 2; half++) {
        top[half] = _mm512_max_epi32(top[half], sums[i][half]);
        _mm512_store_si512(scores + (key - first + i) * QUERIES + half * LANES, sums[i][half]);
      }
  }
}

/* sums[dim][QUERIES] = sums * decay + weights V, for `count` keys whose values begin at `v`. */
VNNI INLINE void add_values(const uint8_t *weights, const int8_t *v, int64_t count, const int64_t dim, const int group,
                            const __m512 decay[2], float *sums) {
  for (int64_t d = 0; d < dim; d += group) {
    __m512i products[10][2];
#pragma GCC unroll 10
    for (int i = 0; i < group; i++) products[i][0] = products[i][1] = _mm512_setzero_si512();
    for (int64_t key = 0; key < count; key += 4) {
      const __m512i left = _mm512_load_si512(weights + key * QUERIES);
      const __m512i right = _mm512_load_si512(weights + key * QUERIES + 4 * LANES);
#pragma GCC unroll 10
      for (int i = 0; i < group; i++) {
        int32_t four;
        memcpy(&four, v + key * dim + (d + i) * 4, 4);
        products[i][0] = add_products(products[i][0], left, _mm512_set1_epi32(four));
        products[i][1] = add_products(products[i][1], right, _mm512_set1_epi32(four));
      }
    }
#pragma GCC unroll 10
    for (int i = 0; i < group; i++)
      for (int half = 0; half < 2; half++) {
        float *place = sums + (d + i) * QUERIES + half * LANES;
        const __m512 product = _mm512_cvtepi32_ps(products[i][half]);
        _mm512_store_ps(place, _mm512_fmadd_ps(_mm512_load_ps(place), decay[half], product));
      }
  }
}

/* The same for weights and values in bf16. */
VNNI INLINE void add_wide_values(const uint16_t *weights, const uint16_t *v, int64_t count, const int64_t dim,
                                 const int group, const __m512 decay[2], float *sums) {
  for (int64_t d = 0; d < dim; d += group) {
    __m512 products[10][2];
#pragma GCC unroll 10
    for (int i = 0; i < group; i++)
      for (int half = 0; half < 2; half++)
        products[i][half] = _mm512_mul_ps(_mm512_load_ps(sums + (d + i) * QUERIES + half * LANES), decay[half]);
    for (int64_t key = 0; key < count; key += 2) {
      const __m512i left = _mm512_load_si512(weights + key * QUERIES);
      const __m512i right = _mm512_load_si512(weights + key * QUERIES + 2 * LANES);
#pragma GCC unroll 10
      for (int i = 0; i < group; i++) {
        int32_t two;
        memcpy(&two, v + key * dim + (d + i) * 2, 4);
        products[i][0] = add_wide_products(products[i][0], left, _mm512_set1_epi32(two));
        products[i][1] = add_wide_products(products[i][1], right, _mm512_set1_epi32(two));
      }
    }
#pragma GCC unroll 10
    for (int i = 0; i < group; i++)
      for (int half = 0; half < 2; half++)
        _mm512_store_ps(sums + (d + i) * QUERIES + half * LANES, products[i][half]);
  }
}

/* Output of at most QUERIES queries from `first` on, of one head. */
VNNI INLINE void attend(const Call *call, int64_t row, int64_t head, int64_t first, const Packed *packed,
                        const int64_t dim, const int group, const int is_wide, const int is_bf16) {
  __attribute__((aligned(64))) uint8_t q[MAX_DIM * QUERIES]; /* [dim / 4][QUERIES][4] */
  __attribute__((aligned(64))) int32_t scores[BLOCK * QUERIES];
  __attribute__((aligned(64))) uint16_t weights[BLOCK * QUERIES]; /* bf16 [keys / 2][QUERIES][2], or uint8 */
  __attribute__((aligned(64))) float sums[MAX_DIM * QUERIES], scales[QUERIES];
  const int64_t stride = call->heads * dim, count = call->queries - first < QUERIES ? call->queries - first : QUERIES;
  const int64_t place = (row * call->queries + first) * stride + head * dim; /* of the first query */
  /* Keeps scores below 2^16, so that float32 tells weights apart. Rounding has lost larger ones anyway. */
  const float limit = 65536.f / (127.f * 127.f * (float)dim * packed->largest_k_scale);
  float poison[QUERIES];
  for (int64_t i = 0; i < QUERIES; i++) {
    const int64_t query = place + (i < count ? i : 0) * stride;
    __m128 top = _mm_setzero_ps(), sum = _mm_setzero_ps();
    for (int64_t d = 0; d < dim; d += 4) {
      const __m128 four = load_four(call->q, query + d, is_bf16);
      top = _mm_max_ps(top, absolute(four));
      sum = _mm_add_ps(sum, _mm_mul_ps(four, _mm_setzero_ps()));
    }
    poison[i] = packed->poison + sum[0] + sum[1] + sum[2] + sum[3];
    const float step = step_of(largest(top));
    scales[i] = fminf(step * call->scale * 1.44269504f, limit); /* 1 / ln 2: powers of 2 are taken */
    for (int64_t d = 0; d < dim; d += 4) {
      const __m128 four = load_four(call->q, query + d, is_bf16);
      const __m128i rounded = _mm_cvtps_epi32(_mm_mul_ps(four, _mm_set1_ps(1.f / step)));
      _mm_storeu_si32(q + d * QUERIES + i * 4, _mm_cvtepi32_epi8(_mm_add_epi32(rounded, _mm_set1_epi32(OFFSET))));
    }
  }
  memset(sums, 0, dim * QUERIES * sizeof(float));
  __m512 total[2], top[2];
  for (int half = 0; half < 2; half++) {
    total[half] = _mm512_setzero_ps();
    top[half] = _mm512_set1_ps(-1e30f);
  }
  /* log2(254) makes the largest weight 254, or 255 by an error of rounding. */
  const __m512 origin = _mm512_set1_ps(is_wide ? GRID : 7.9886847f);
  for (int64_t key = 0; key < packed->keys; key += BLOCK) {
    const int64_t block = packed->keys - key < BLOCK ? packed->keys - key : BLOCK;
    __m512i block_top[2] = {_mm512_set1_epi32(LOWEST), _mm512_set1_epi32(LOWEST)};
    score_keys(q, packed, key, block, dim, scores, block_top);
    __m512 decay[2];
    for (int half = 0; half < 2; half++) {
      const __m512 scale =
          _mm512_mul_ps(_mm512_load_ps(scales + half * LANES), _mm512_set1_ps(packed->k_scale[key / BLOCK]));
      __m512 raised = _mm512_max_ps(top[half], _mm512_mul_ps(_mm512_cvtepi32_ps(block_top[half]), scale));
      const __m512 shift = _mm512_sub_ps(origin, raised);
      if (is_wide) raised = _mm512_sub_ps(origin, shift); /* as rounded in `shift` */
      decay[half] = exp2_vector(_mm512_max_ps(_mm512_sub_ps(top[half], raised), _mm512_set1_ps(-126.f)));
      top[half] = raised;
      const int32_t *column = scores + half * LANES;
      if (is_wide) {
        __m512 added = _mm512_setzero_ps();
        for (int64_t i = 0; i < block; i += 2)
          look_up_weights(column + i * QUERIES, scale, shift, weights + i * QUERIES + half * 2 * LANES, &added);
        total[half] = _mm512_fmadd_ps(total[half], decay[half], added);
      } else {
        __m512i added = _mm512_setzero_si512();
        uint8_t *bytes = (uint8_t *)weights + half * 4 * LANES;
        for (int64_t i = 0; i < block; i += 4)
          round_weights(column + i * QUERIES, scale, shift, bytes + i * QUERIES, &added);
        total[half] = _mm512_fmadd_ps(total[half], decay[half], _mm512_cvtepi32_ps(added));
      }
    }
    if (is_wide) add_wide_values(weights, (uint16_t *)packed->v + key * dim, block, dim, group, decay, sums);
    else add_values((uint8_t *)weights, (int8_t *)packed->v + key * dim, block, dim, group, decay, sums);
  }
  for (int half = 0; half < 2; half++)
    _mm512_store_ps(scales + half * LANES, _mm512_div_ps(_mm512_set1_ps(1.f), total[half]));
  for (int64_t i = 0; i < count; i++) {
    float result[MAX_DIM];
    for (int64_t d = 0; d < dim; d++) result[d] = sums[d * QUERIES + i] * packed->v_scale[d] * scales[i] + poison[i];
    if (!is_bf16) memcpy((float *)call->out + place + i * stride, result, dim * sizeof(float));
    else
      for (int64_t d = 0; d < dim; d++) ((uint16_t *)call->out)[place + i * stride + d] = to_bf16(result[d]);
  }
}

VNNI INLINE void run_part(const Call *call, int64_t item, Packed *packed, const int is_wide, const int is_bf16) {
  const int64_t part = item % call->parts, head = item / call->parts % call->heads, row = item / call->parts / call->heads;
  const int64_t tiles = (call->queries + QUERIES - 1) / QUERIES;
  pack(call, row, head, packed, is_wide, is_bf16);
  for (int64_t tile = tiles * part / call->parts; tile < tiles * (part + 1) / call->parts; tile++) {
    const int64_t first = tile * QUERIES;
    /* Constants for the common sizes, so that the compiler unrolls the loops over channels. */
    switch (call->dim) {
      case 40: attend(call, row, head, first, packed, 40, 10, is_wide, is_bf16); break;
      case 64: attend(call, row, head, first, packed, 64, 8, is_wide, is_bf16); break;
      case 80: attend(call, row, head, first, packed, 80, 10, is_wide, is_bf16); break;
      case 128: attend(call, row, head, first, packed, 128, 8, is_wide, is_bf16); break;
      default:
        if (call->dim % 8 == 0) attend(call, row, head, first, packed, call->dim, 8, is_wide, is_bf16);
        else attend(call, row, head, first, packed, call->dim, 4, is_wide, is_bf16);
    }
  }
}

VNNI static void run_bytes(const Call *call, int64_t item, Packed *packed) { run_part(call, item, packed, 0, 0); }

VNNI static void run_wide(const Call *call, int64_t item, Packed *packed) { run_part(call, item, packed, 1, 0); }

VNNI static void run_bf16(const Call *call, int64_t item, Packed *packed) { run_part(call, item, packed, 1, 1); }

static void *work(void *argument) {
  Call *call = argument;
  Packed packed;
  packed.keys = (call->keys + KEYS - 1) / KEYS * KEYS;
  packed.k = malloc(packed.keys * call->dim);
  packed.v = malloc(packed.keys * call->dim * sizeof(uint16_t));
  packed.start = malloc(packed.keys * sizeof(int32_t));
  packed.k_scale = malloc((packed.keys / BLOCK + 1) * sizeof(float));
  if (!packed.k || !packed.v || !packed.start || !packed.k_scale) call->failed = 1;
  while (!call->failed) {
    const int64_t item = __atomic_fetch_add(&call->next, 1, __ATOMIC_RELAXED);
    if (item >= call->rows * call->heads * call->parts) break;
    if (call->is_bf16) run_bf16(call, item, &packed);
    else if (call->is_wide) run_wide(call, item, &packed);
    else run_bytes(call, item, &packed);
  }
  free(packed.k);
  free(packed.v);
  free(packed.start);
  free(packed.k_scale);
  return NULL;
}

static void *work_beside(void *argument) {
  /* A thread inherits the processor to which a runtime has pinned its caller. */
  sched_setaffinity(0, sizeof(cpu_set_t), &((Call *)argument)->processors);
  return work(argument);
}

static cpu_set_t processors;

/* Remembers on which processors threads may run. To be called before a runtime pins the thread. */
void int8_attention_setup(void) { sched_getaffinity(0, sizeof processors, &processors); }

/* Computes the attention on `threads` threads. `dim` is a multiple of 4, at most MAX_DIM. `is_wide` says that weights
 * and V are multiplied in bf16, which the processor must have; `is_bf16`, that all tensors are bf16, too. Returns 0, or 1
 * where there is too little memory. Rows and heads do not influence each other, and the result does not depend on
 * `threads`. */
int int8_attention(const void *q, const void *k, const void *v, void *out, int64_t rows, int64_t queries, int64_t keys,
                   int64_t heads, int64_t dim, float scale, int threads, int is_wide, int is_bf16) {
  const int64_t parts = rows * heads < threads ? (threads + rows * heads - 1) / (rows * heads) : 1;
  Call call = {q, k, v, out, rows, queries, keys, heads, dim, scale, parts, 0, 0, is_wide, is_bf16, processors};
  pthread_t others[MAX_THREADS];
  int started = 0;
  while (started + 1 < threads && started < MAX_THREADS && !pthread_create(&others[started], NULL, work_beside, &call))
    started++;
  work(&call);
  for (int i = 0; i < started; i++) pthread_join(others[i], NULL);
  return call.failed;
}

#else

void int8_attention_setup(void) {}

int int8_attention(const void *q, const void *k, const void *v, void *out, int64_t rows, int64_t queries, int64_t keys,
                   int64_t heads, int64_t dim, float scale, int threads, int is_wide, int is_bf16) {
  return 2;
}

#endif
