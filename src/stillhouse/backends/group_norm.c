/* Group normalisation, and SiLU after it, of bf16 tensors whose channels are innermost, for processors with AVX-512.
 *
 * y = silu((x - mean) / sqrt(variance + epsilon) * scale + shift) for x of shape [rows, pixels, channels], with a mean
 * and a variance for each row and each group of neighbouring channels (Wu and He 2018, arXiv:1803.08494). Convolutions
 * on this layout then need no change of the layout before and after a normalisation.
 *
 * Sums are taken in parts of PART pixels in float32, of differences to the first pixel so that they stay small, and
 * parts are added in float64 in their order, so that the result does not depend on the number of threads.
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

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define INLINE static inline __attribute__((always_inline))

enum {
  LANES = 16,
  BLOCK = 4 * LANES, /* channels whose sums are kept in registers */
  PART = 512,        /* pixels */
  ALONE = 1 << 18,   /* values for which a second thread is not worth its start */
  MAX_THREADS = 64
};

typedef struct Call Call;
typedef void Stage(const Call *call, int64_t row, int64_t part);

struct Call {
  const uint16_t *x;
  uint16_t *y;
  const float *scale, *shift; /* [channels] */
  int64_t rows, pixels, channels, groups, parts;
  float epsilon;
  float *sums;            /* [rows][parts][2][channels]: of differences to the first pixel, and of their squares */
  float *means, *factors; /* [rows][channels]: y = silu((x - mean) * factor + shift) */
  Stage *stage;
  int64_t next; /* next part of work */
  cpu_set_t processors;
};

/* At most 16 values; `mask` is all ones where there are as many. */
AVX512 INLINE __m512 load(const uint16_t *place, __mmask16 mask, const int is_full) {
  const __m256i halves = is_full ? _mm256_loadu_si256((const __m256i *)place) : _mm256_maskz_loadu_epi16(mask, place);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

AVX512 INLINE void store(uint16_t *place, __m512 value, __mmask16 mask, const int is_full) {
  __m256i halves;
  __asm__("vcvtneps2bf16 %1, %0" : "=v"(halves) : "v"(value));
  if (is_full) _mm256_storeu_si256((__m256i *)place, halves);
  else _mm256_mask_storeu_epi16(place, mask, halves);
}

/* value / (1 + e^-value) with a relative error below 2^-12, less than the rounding to bf16. */
AVX512 INLINE __m512 silu(__m512 value) {
  const __m512 x = _mm512_mul_ps(value, _mm512_set1_ps(-1.44269504f));
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 part = _mm512_sub_ps(x, whole);
  __m512 power = _mm512_fmadd_ps(_mm512_set1_ps(0.05550411f), part, _mm512_set1_ps(0.24022651f));
  power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(0.69314718f));
  power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(1.f));
  /* Finite, so that values near the lowest number give 0 and not NaN. */
  power = _mm512_scalef_ps(power, _mm512_min_ps(whole, _mm512_set1_ps(120.f)));
  return _mm512_mul_ps(value, _mm512_rcp14_ps(_mm512_add_ps(power, _mm512_set1_ps(1.f))));
}

INLINE __mmask16 lanes_from(int64_t first, int64_t count) {
  return count - first >= LANES ? 0xffff : count > first ? (__mmask16)((1 << (count - first)) - 1) : 0;
}

/* Sums of one part of the pixels of a row. */
AVX512 INLINE void add_up(const Call *call, int64_t row, int64_t part, const int is_full) {
  const int64_t channels = call->channels, first = part * PART;
  const int64_t end = first + PART < call->pixels ? first + PART : call->pixels;
  const uint16_t *x = call->x + row * call->pixels * channels;
  float *sums = call->sums + (row * call->parts + part) * 2 * channels;
  for (int64_t c = 0; c < channels; c += BLOCK) {
    __m512 origin[4], sum[4], squares[4];
    __mmask16 mask[4];
    for (int i = 0; i < 4; i++) {
      mask[i] = lanes_from(c + i * LANES, channels);
      origin[i] = load(x + c + i * LANES, mask[i], is_full);
      sum[i] = squares[i] = _mm512_setzero_ps();
    }
    for (int64_t pixel = first; pixel < end; pixel++)
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        const __m512 value = _mm512_sub_ps(load(x + pixel * channels + c + i * LANES, mask[i], is_full), origin[i]);
        sum[i] = _mm512_add_ps(sum[i], value);
        squares[i] = _mm512_fmadd_ps(value, value, squares[i]);
      }
    for (int i = 0; i < 4; i++) {
      _mm512_mask_storeu_ps(sums + c + i * LANES, mask[i], sum[i]);
      _mm512_mask_storeu_ps(sums + channels + c + i * LANES, mask[i], squares[i]);
    }
  }
}

INLINE double to_double(uint16_t half) {
  const uint32_t bits = (uint32_t)half << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

/* Means and factors of the channels of a row. `totals` has room for two numbers of each channel. */
static void combine(const Call *call, int64_t row, double *totals) {
  const int64_t channels = call->channels, width = channels / call->groups;
  const uint16_t *origin = call->x + row * call->pixels * channels;
  memset(totals, 0, 2 * channels * sizeof(double));
  for (int64_t part = 0; part < call->parts; part++)
    for (int64_t i = 0; i < 2 * channels; i++) totals[i] += call->sums[(row * call->parts + part) * 2 * channels + i];
  for (int64_t first = 0; first < channels; first += width) {
    double mean = 0, variance = 0;
    for (int64_t c = first; c < first + width; c++) {
      totals[c] /= (double)call->pixels;
      mean += (to_double(origin[c]) + totals[c]) / (double)width;
    }
    for (int64_t c = first; c < first + width; c++) {
      const double off = to_double(origin[c]) + totals[c] - mean;
      variance += (totals[channels + c] / (double)call->pixels - totals[c] * totals[c] + off * off) / (double)width;
    }
    const double inverse = 1 / sqrt((variance < 0 ? 0 : variance) + call->epsilon);
    for (int64_t c = first; c < first + width; c++) {
      call->means[row * channels + c] = (float)mean;
      call->factors[row * channels + c] = (float)(call->scale[c] * inverse);
    }
  }
}

/* Output of one part of the pixels of a row. */
AVX512 INLINE void apply(const Call *call, int64_t row, int64_t part, const int has_silu, const int is_full) {
  const int64_t channels = call->channels, first = part * PART;
  const int64_t end = first + PART < call->pixels ? first + PART : call->pixels;
  const float *means = call->means + row * channels, *factors = call->factors + row * channels;
  for (int64_t pixel = first; pixel < end; pixel++) {
    const int64_t place = (row * call->pixels + pixel) * channels;
    for (int64_t c = 0; c < channels; c += LANES) {
      const __mmask16 mask = is_full ? 0xffff : lanes_from(c, channels);
      const __m512 factor = _mm512_maskz_loadu_ps(mask, factors + c);
      const __m512 shift = _mm512_maskz_loadu_ps(mask, call->shift + c);
      const __m512 x = load(call->x + place + c, mask, is_full);
      const __m512 value = _mm512_fmadd_ps(_mm512_sub_ps(x, _mm512_maskz_loadu_ps(mask, means + c)), factor, shift);
      store(call->y + place + c, has_silu ? silu(value) : value, mask, is_full);
    }
  }
}

AVX512 static void add_up_full(const Call *call, int64_t row, int64_t part) { add_up(call, row, part, 1); }
AVX512 static void add_up_some(const Call *call, int64_t row, int64_t part) { add_up(call, row, part, 0); }
AVX512 static void apply_full(const Call *call, int64_t row, int64_t part) { apply(call, row, part, 0, 1); }
AVX512 static void apply_some(const Call *call, int64_t row, int64_t part) { apply(call, row, part, 0, 0); }
AVX512 static void silu_full(const Call *call, int64_t row, int64_t part) { apply(call, row, part, 1, 1); }
AVX512 static void silu_some(const Call *call, int64_t row, int64_t part) { apply(call, row, part, 1, 0); }

static void *work(void *argument) {
  Call *call = argument;
  for (;;) {
    const int64_t item = __atomic_fetch_add(&call->next, 1, __ATOMIC_RELAXED);
    if (item >= call->rows * call->parts) return NULL;
    call->stage(call, item / call->parts, item % call->parts);
  }
}

static void *work_beside(void *argument) {
  /* A thread inherits the processor to which a runtime has pinned its caller. */
  sched_setaffinity(0, sizeof(cpu_set_t), &((Call *)argument)->processors);
  return work(argument);
}

static void run_stage(Call *call, Stage *stage, int threads) {
  pthread_t others[MAX_THREADS];
  int started = 0;
  call->stage = stage;
  call->next = 0;
  while (started + 1 < threads && started < MAX_THREADS && !pthread_create(&others[started], NULL, work_beside, call))
    started++;
  work(call);
  for (int i = 0; i < started; i++) pthread_join(others[i], NULL);
}

static cpu_set_t processors;

/* Remembers on which processors threads may run. To be called before a runtime pins the thread. */
void group_norm_setup(void) { sched_getaffinity(0, sizeof processors, &processors); }

/* Normalises x, bf16 [rows, pixels, channels], into y on at most `threads` threads. `groups` divides `channels`; scale
 * and shift are float32 [channels]. Returns 0, or 1 where there is too little memory. */
int group_norm(const void *x, void *y, const float *scale, const float *shift, int64_t rows, int64_t pixels,
               int64_t channels, int64_t groups, float epsilon, int has_silu, int threads) {
  const int64_t parts = (pixels + PART - 1) / PART;
  float *sums = malloc(rows * parts * 2 * channels * sizeof(float));
  float *means = malloc(2 * rows * channels * sizeof(float));
  double *totals = malloc(2 * channels * sizeof(double));
  const int failed = !sums || !means || !totals;
  if (!failed) {
    Call call = {.x = x, .y = y, .scale = scale, .shift = shift, .rows = rows, .pixels = pixels, .channels = channels,
                 .groups = groups, .parts = parts, .epsilon = epsilon, .sums = sums, .means = means,
                 .factors = means + rows * channels, .processors = processors};
    if (rows * pixels * channels < ALONE) threads = 1;
    const int is_full = channels % BLOCK == 0;
    run_stage(&call, is_full ? add_up_full : add_up_some, threads);
    for (int64_t row = 0; row < rows; row++) combine(&call, row, totals);
    run_stage(&call, has_silu ? is_full ? silu_full : silu_some : is_full ? apply_full : apply_some, threads);
  }
  free(sums);
  free(means);
  free(totals);
  return failed;
}

#else

void group_norm_setup(void) {}

int group_norm(const void *x, void *y, const float *scale, const float *shift, int64_t rows, int64_t pixels,
               int64_t channels, int64_t groups, float epsilon, int has_silu, int threads) {
  return 2;
}

#endif
