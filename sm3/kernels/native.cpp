// SM3 in one pass over a rows x cols tensor on the CPU. It rounds the operations of chunked.py in the same order.
//
// Second moments are never negative, so their bits have the order of integers. A NaN without its sign is above all.
// Integer maxima are exact in any order, so neither threads nor vectors change a bit. It is compiled without
// contraction of multiplications and additions.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

using Bits = int32_t;
constexpr int64_t kBlock = 2048;  // columns whose maxima stay in the first-level cache

struct Options {
  float step;        // lr, or -lr when maximizing
  float rate;        // -lr
  float momentum;    // weight of the past in the average
  float fresh;       // momentum - 1, or 1 - momentum when maximizing
  float old_weight;  // beta
  float new_weight;  // 1 - beta
  float floor;       // eps^2
  float decay;       // 1 - lr * weight_decay
};

struct BFloat16 {
  uint16_t bits;
};

inline float load(float value) { return value; }
inline float load(BFloat16 value) {
  uint32_t wide = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &wide, 4);
  return result;
}
inline void store(float& to, float value) { to = value; }
inline void store(BFloat16& to, float value) {  // rounds to nearest, ties to even, as c10::BFloat16 does
  uint32_t wide;
  std::memcpy(&wide, &value, 4);
  uint32_t rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
  to.bits = uint16_t(value != value ? 0x7fc0u : rounded);
}

template <typename P>
inline float rounded(float value) {
  P narrow;
  store(narrow, value);
  return load(narrow);
}

inline Bits bits_of(float value) {
  Bits bits;
  std::memcpy(&bits, &value, 4);
  return bits & 0x7fffffff;
}
inline Bits larger(Bits a, Bits b) { return a > b ? a : b; }

#ifdef _OPENMP
inline int thread_number() { return omp_get_thread_num(); }
inline int team_size() { return omp_get_num_threads(); }  // OpenMP may start fewer threads than it was asked for
#else
inline int thread_number() { return 0; }
inline int team_size() { return 1; }
#endif

#ifdef SM3_ROUND_ONCE  // PyTorch's own kernels round once on this processor: see inner.py
inline float add_square(float least, float grad) { return std::fma(grad, grad, least); }
#else
inline float add_square(float least, float grad) { return least + grad * grad; }
#endif

inline float average_square(float least, float grad, const Options o) {
  return least * o.old_weight + (grad * grad) * o.new_weight;
}

template <typename P, typename M, bool averages>
inline void descend(P& param, float grad, M* average, float nu, const Options o) {
  const float root = std::sqrt(nu < o.floor ? o.floor : nu);
  const float kept = rounded<P>(load(param) * o.decay);  // it stays in a register, as a store would cost a wait
  if (averages) {
    const float value = load(*average) * o.momentum - (grad * o.fresh) / root;
    store(*average, value);
    store(param, kept + value * o.rate);
  } else {
    store(param, kept - (grad * o.step) / root);
  }
}

// In this order: SM3-II; only the maxima of g^2; SM3-I after its sums are complete; SM3-II with averages, not sums.
enum Mode { kSecond = 0, kMaxima = 1, kFirst = 2, kAverage = 3 };

// Updates one entry, whose smallest accumulator is min(row, column). `poison` is `row` if that is a NaN, which the
// comparison would lose.
template <typename P, typename M, Mode mode, bool averages>
inline Bits entry(P& p, P g, M* m, float row, float poison, float column, const Options o) {
  const float grad = load(g);
  float nu;
  if (mode == kMaxima) {
    nu = grad * grad;
  } else {
    const float least = (row < column ? row : column) + poison;
    nu = mode == kSecond ? add_square(least, grad) : mode == kAverage ? average_square(least, grad, o) : least;
  }
  if (mode != kMaxima) descend<P, M, averages>(p, grad, m, nu, o);
  return mode == kFirst ? 0 : bits_of(nu);
}

inline float poison_of(float row) { return row != row ? row : 0.0f; }

// Updates columns [from, to) of one row. It returns the row's maximum and raises the maxima of the columns.
template <typename P, typename M, Mode mode, bool averages>
inline Bits sweep(P* p, const P* g, M* m, float row, const float* column, Bits* column_max, int64_t from, int64_t to,
                  const Options o) {
  const float poison = poison_of(row);
  Bits row_max = 0;
#pragma omp simd reduction(max : row_max)
  for (int64_t j = from; j < to; ++j) {
    const Bits bits = entry<P, M, mode, averages>(p[j], g[j], averages ? m + j : nullptr, row, poison, column[j], o);
    if (mode == kFirst) continue;
    column_max[j - from] = larger(column_max[j - from], bits);
    row_max = larger(row_max, bits);
  }
  return row_max;
}

// Updates two rows at once, the second `apart` entries and `next` rows after the first. The accumulators and maxima of
// the columns fill the first-level cache in wide matrices, and this reads and writes them half as often.
template <typename P, typename M, Mode mode, bool averages>
inline void sweep_two(P* p, const P* g, M* m, float* row, const float* column, Bits* column_max, int64_t cols,
                      int64_t apart, int64_t next, const Options o) {
  const float one = row[0], two = row[next], poison_one = poison_of(one), poison_two = poison_of(two);
  Bits max_one = 0, max_two = 0;
#pragma omp simd reduction(max : max_one, max_two)
  for (int64_t j = 0; j < cols; ++j) {
    const int64_t k = j + apart;
    const Bits a = entry<P, M, mode, averages>(p[j], g[j], averages ? m + j : nullptr, one, poison_one, column[j], o);
    const Bits b = entry<P, M, mode, averages>(p[k], g[k], averages ? m + k : nullptr, two, poison_two, column[j], o);
    if (mode == kFirst) continue;
    column_max[j] = larger(column_max[j], larger(a, b));
    max_one = larger(max_one, a);
    max_two = larger(max_two, b);
  }
  if (mode == kFirst) return;
  std::memcpy(row, &max_one, 4);
  std::memcpy(row + next, &max_two, 4);
}

// Threads share out the rows. Each reads its own rows in two halves at once, both in the order of memory, as two
// neighbouring rows would confuse the processor's prefetching. `partial` holds each thread's column maxima.
template <typename P, typename M, Mode mode, bool averages>
void by_rows(P* p, const P* g, M* m, float* row, float* column, Bits* partial, int64_t rows, int64_t cols,
             const Options o, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const Options options = o;  // a copy, as the compiler must assume that each store changes the original
    Bits* mine = partial + thread_number() * cols;
    if (mode != kFirst) std::memset(mine, 0, size_t(cols) * sizeof(Bits));
    const int64_t from = rows * thread_number() / team_size(), to = rows * (thread_number() + 1) / team_size();
    const int64_t half = (to - from) / 2;
    for (int64_t i = from; i < from + half; ++i) {
      const int64_t at = i * cols;
      sweep_two<P, M, mode, averages>(p + at, g + at, averages ? m + at : nullptr, row + i, column, mine, cols,
                                      half * cols, half, options);
    }
    if (from + 2 * half < to) {
      const int64_t at = (to - 1) * cols;
      const Bits top = sweep<P, M, mode, averages>(p + at, g + at, averages ? m + at : nullptr, row[to - 1], column,
                                                   mine, 0, cols, options);
      if (mode != kFirst) std::memcpy(row + to - 1, &top, 4);
    }
    if (mode != kFirst) {
#pragma omp barrier
#pragma omp for schedule(static)
      for (int64_t j = 0; j < cols; ++j) {
        Bits top = 0;
        for (int t = 0; t < team_size(); ++t) top = larger(top, partial[t * cols + j]);
        std::memcpy(column + j, &top, 4);
      }
    }
  }
}

// For few or very long rows, threads share out blocks of columns. `partial` holds each thread's row maxima.
template <typename P, typename M, Mode mode, bool averages>
void by_columns(P* p, const P* g, M* m, float* row, float* column, Bits* partial, int64_t rows, int64_t cols,
                const Options o, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const Options options = o;  // a copy, as the compiler must assume that each store changes the original
    Bits* mine = partial + thread_number() * rows;
    Bits column_max[kBlock];
    if (mode != kFirst) std::memset(mine, 0, size_t(rows) * sizeof(Bits));
#pragma omp for schedule(static)
    for (int64_t block = 0; block < (cols + kBlock - 1) / kBlock; ++block) {
      const int64_t from = block * kBlock, to = from + kBlock < cols ? from + kBlock : cols;
      if (mode != kFirst) std::memset(column_max, 0, sizeof column_max);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t at = i * cols;
        const Bits top = sweep<P, M, mode, averages>(p + at, g + at, averages ? m + at : nullptr, row[i], column,
                                                     column_max, from, to, options);
        if (mode != kFirst) mine[i] = larger(mine[i], top);
      }
      if (mode != kFirst) std::memcpy(column + from, column_max, size_t(to - from) * 4);
    }
    if (mode != kFirst) {
#pragma omp for schedule(static)
      for (int64_t i = 0; i < rows; ++i) {
        Bits top = 0;
        for (int t = 0; t < team_size(); ++t) top = larger(top, partial[t * rows + i]);
        std::memcpy(row + i, &top, 4);
      }
    }
  }
}

template <typename P, typename M, Mode mode, bool averages>
void matrix(void* p, const void* g, void* m, float* row, float* column, void* partial, int64_t rows, int64_t cols,
            const Options o, int along_rows, int threads) {
  const auto run = along_rows ? by_rows<P, M, mode, averages> : by_columns<P, M, mode, averages>;
  run(static_cast<P*>(p), static_cast<const P*>(g), static_cast<M*>(m), row, column, static_cast<Bits*>(partial), rows,
      cols, o, threads);
}

template <typename P, typename M>
void matrix_in_mode(int mode, void* p, const void* g, void* m, float* row, float* column, void* partial, int64_t rows,
                    int64_t cols, const Options o, int along_rows, int threads) {
  if (mode == kMaxima) {
    matrix<P, M, kMaxima, false>(p, g, m, row, column, partial, rows, cols, o, along_rows, threads);
  } else if (mode == kFirst) {
    (m ? matrix<P, M, kFirst, true> : matrix<P, M, kFirst, false>)(p, g, m, row, column, partial, rows, cols, o,
                                                                   along_rows, threads);
  } else if (mode == kAverage) {
    (m ? matrix<P, M, kAverage, true> : matrix<P, M, kAverage, false>)(p, g, m, row, column, partial, rows, cols, o,
                                                                       along_rows, threads);
  } else {
    (m ? matrix<P, M, kSecond, true> : matrix<P, M, kSecond, false>)(p, g, m, row, column, partial, rows, cols, o,
                                                                     along_rows, threads);
  }
}

// The singleton cover is diagonal Adagrad, which is the same in both variants.
template <typename P, typename M, bool averages, Mode mode>
void singleton(P* p, const P* g, M* m, float* accumulator, int64_t numel, const Options o, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const Options options = o;
#pragma omp for simd schedule(static)
    for (int64_t i = 0; i < numel; ++i) {
      const float grad = load(g[i]);
      const float nu =
          mode == kSecond ? add_square(accumulator[i], grad) : average_square(accumulator[i], grad, options);
      accumulator[i] = nu;
      descend<P, M, averages>(p[i], grad, averages ? m + i : nullptr, nu, options);
    }
  }
}

template <typename P, typename M>
void vector(int mode, void* p, const void* g, void* m, float* accumulator, int64_t numel, const Options o,
            int threads) {
  const auto run = mode == kSecond ? (m ? singleton<P, M, true, kSecond> : singleton<P, M, false, kSecond>)
                                   : (m ? singleton<P, M, true, kAverage> : singleton<P, M, false, kAverage>);
  run(static_cast<P*>(p), static_cast<const P*>(g), static_cast<M*>(m), accumulator, numel, o, threads);
}

}  // namespace

extern "C" {

// dtypes: bit 0 is set if the parameter and its gradient are bfloat16, bit 1 if the momentum is.
void sm3_matrix(int mode, int dtypes, void* p, const void* g, void* m, float* row, float* column, void* partial,
                int64_t rows, int64_t cols, const Options* o, int along_rows, int threads) {
  const auto run = dtypes == 0   ? matrix_in_mode<float, float>
                   : dtypes == 1 ? matrix_in_mode<BFloat16, float>
                   : dtypes == 2 ? matrix_in_mode<float, BFloat16>
                                 : matrix_in_mode<BFloat16, BFloat16>;
  run(mode, p, g, m, row, column, partial, rows, cols, *o, along_rows, threads);
}

void sm3_vector(int mode, int dtypes, void* p, const void* g, void* m, float* accumulator, int64_t numel,
                const Options* o, int threads) {
  const auto run = dtypes == 0   ? vector<float, float>
                   : dtypes == 1 ? vector<BFloat16, float>
                   : dtypes == 2 ? vector<float, BFloat16>
                                 : vector<BFloat16, BFloat16>;
  run(mode, p, g, m, accumulator, numel, *o, threads);
}
}
