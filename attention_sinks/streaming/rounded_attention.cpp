// Attention of one token per row over keys and values as a cache keeps them. A tile of slots is unpacked into memory that
// stays in the first cache of a core, once for all queries that share its head. The softmax is made tile by tile
// (FlashAttention, arXiv 2205.14135, algorithm 1). Parts of the slots are shared out among threads, and joined in the end.

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("tree-loop-vectorize")  // inductor compiles without it
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

// What `rounded_attention.py` hands over; all tensors are contiguous.
struct Call {
  const float* query;       // [rows, heads, queries, width]
  const float* sinks;       // [rows, heads, sink_size, width], in place of the first keys
  const uint8_t* keys;      // [rows, heads, slots, key_bytes]
  const uint8_t* values;    // [rows, heads, slots, value_bytes]
  const uint8_t* visible;   // [rows, slots] bool; all rows share one where visible_stride is 0
  float* output;            // [rows, heads, queries, value_width]
  int64_t rows, heads, queries, width, slots, sink_size, value_width, visible_stride;
  int64_t key_bytes, value_bytes, key_form, value_form, threads;
  double scaling;
};

namespace {

constexpr int64_t TILE = 64;   // slots that are unpacked at once
constexpr int64_t PART = 256;  // slots that one thread takes at once; how many threads there are changes no result
constexpr int64_t LANES = 8;   // numbers in a vector
constexpr float NEVER = -std::numeric_limits<float>::infinity();

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline Lanes load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }

inline void store(float* to, Lanes lanes) { *reinterpret_cast<Unaligned*>(to) = lanes; }

inline float sum_of(Lanes lanes) {
  float sum = 0;
  for (int i = 0; i < LANES; i++) sum += lanes[i];
  return sum;
}

// ---- forms: each brings `slots` rows to `width` floats each

using Unpack = void (*)(const uint8_t* rows, int64_t slots, int64_t width, float* floats);

void from_float32(const uint8_t* rows, int64_t slots, int64_t width, float* floats) {
  std::memcpy(floats, rows, slots * width * sizeof(float));
}

// In integers, which every compiler makes vectors of. What is not finite has all bits of the exponent in both formats.
inline float of_half(uint32_t half) {
  const float scaled = __builtin_bit_cast(float, (half & 0x7FFF) << 13 | (half & 0x8000) << 16) * 0x1p112f;
  const uint32_t is_finite = (half & 0x7C00) != 0x7C00;
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, scaled) | ((is_finite - 1) & 0x7F800000));
}

void from_float16(const uint8_t* rows, int64_t slots, int64_t width, float* floats) {
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(rows);
#pragma omp simd
  for (int64_t i = 0; i < slots * width; i++) floats[i] = of_half(halves[i]);
}

void from_bfloat16(const uint8_t* rows, int64_t slots, int64_t width, float* floats) {
  const uint16_t* upper = reinterpret_cast<const uint16_t*>(rows);
#pragma omp simd
  for (int64_t i = 0; i < slots * width; i++)
    floats[i] = __builtin_bit_cast(float, static_cast<uint32_t>(upper[i]) << 16);
}

// The records of `InGroups` in `cache/precision.py`.
template <int BITS, int GROUP>
void from_groups(const uint8_t* rows, int64_t slots, int64_t width, float* floats) {
  constexpr int BYTES = GROUP * BITS / 8, SHARED = 2 * sizeof(uint16_t);
  for (int64_t left = slots * width / GROUP; left > 0; left--, rows += BYTES + SHARED, floats += GROUP) {
    uint16_t shared[2];
    std::memcpy(shared, rows + BYTES, SHARED);
    const float scale = of_half(shared[0]), offset = of_half(shared[1]);
    if (BITS == 8) {
#pragma omp simd
      for (int i = 0; i < BYTES; i++) floats[i] = static_cast<int32_t>(rows[i]) * scale + offset;
    } else {
#pragma omp simd
      for (int i = 0; i < BYTES; i++) floats[i] = static_cast<int32_t>(rows[i] & 15) * scale + offset;
#pragma omp simd
      for (int i = 0; i < BYTES; i++) floats[BYTES + i] = static_cast<int32_t>(rows[i] >> 4) * scale + offset;
    }
  }
}

Unpack unpack_of(int64_t form) {
  switch (form) {
    case 832: return from_groups<8, 32>;
    case 816: return from_groups<8, 16>;
    case 808: return from_groups<8, 8>;
    case 432: return from_groups<4, 32>;
    case 416: return from_groups<4, 16>;
    case 408: return from_groups<4, 8>;
    case 17: return from_bfloat16;
    case 16: return from_float16;
    default: return from_float32;
  }
}

// ---- one tile

// e to the power of a number that is not above 0, by the polynomial of Cephes. NaN stays NaN; below -87 it is 0.
inline float exp_of(float x) {
  const float whole = std::nearbyint(x * 1.44269504f);
  const float rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float power = 1.9875691500e-4f * rest + 1.3981999507e-3f;
  power = power * rest + 8.3334519073e-3f;
  power = power * rest + 4.1665795894e-2f;
  power = power * rest + 1.6666665459e-1f;
  power = power * rest + 5.0000001201e-1f;
  power = power * rest * rest + rest + 1;
  const int32_t exponent = static_cast<int32_t>(whole < -126.f ? -126.f : whole) + 127;
  return x < -87.f ? 0.f : power * __builtin_bit_cast(float, exponent << 23);
}

// Four slots at once, so that their sums need not wait for each other.
void scores_of(const float* query, const float* keys, int64_t slots, int64_t width, float* scores) {
  int64_t slot = 0;
  for (; slot + 4 <= slots; slot += 4, keys += 4 * width) {
    Lanes sums[4] = {};
    for (int64_t i = 0; i < width; i += LANES) {
      const Lanes part = load(query + i);
      for (int k = 0; k < 4; k++) sums[k] += part * load(keys + k * width + i);
    }
    for (int k = 0; k < 4; k++) scores[slot + k] = sum_of(sums[k]);
  }
  for (; slot < slots; slot++, keys += width) {
    Lanes sum = {};
    for (int64_t i = 0; i < width; i += LANES) sum += load(query + i) * load(keys + i);
    scores[slot] = sum_of(sum);
  }
}

// `BLOCKS` vectors of the output stay in registers while the slots go by.
template <int BLOCKS>
void add_block(const float* weights, const float* values, int64_t slots, int64_t width, float factor, float* output) {
  Lanes sums[BLOCKS];
  for (int k = 0; k < BLOCKS; k++) sums[k] = load(output + k * LANES) * factor;
  for (int64_t slot = 0; slot < slots; slot++)
    for (int k = 0; k < BLOCKS; k++) sums[k] += weights[slot] * load(values + slot * width + k * LANES);
  for (int k = 0; k < BLOCKS; k++) store(output + k * LANES, sums[k]);
}

// output = output * factor + weights @ values
void add_values(const float* weights, const float* values, int64_t slots, int64_t width, float factor, float* output) {
  int64_t i = 0;
  for (; i + 4 * LANES <= width; i += 4 * LANES) add_block<4>(weights, values + i, slots, width, factor, output + i);
  for (; i < width; i += LANES) add_block<1>(weights, values + i, slots, width, factor, output + i);
}

// Makes weights of scores, where a slot is visible. Returns what earlier output and sum are to be multiplied by.
float soften(const uint8_t* visible, int64_t slots, float* scores, float& most, float& sum) {
  float greatest = most, added = 0;
#pragma omp simd reduction(max : greatest)
  for (int64_t slot = 0; slot < slots; slot++) {
    scores[slot] = visible[slot] ? scores[slot] : NEVER;
    greatest = scores[slot] > greatest ? scores[slot] : greatest;
  }
#pragma omp simd reduction(+ : added)
  for (int64_t slot = 0; slot < slots; slot++) {
    scores[slot] = exp_of(scores[slot] - greatest);
    added += scores[slot];
  }
  const float factor = exp_of(most - greatest);
  most = greatest;
  sum = sum * factor + added;
  return factor;
}

// ---- one part of the slots of one head, and all parts of one query

struct Scratch {
  std::vector<float> query, tile, scores, factors;

  explicit Scratch(const Call& c)
      : query(c.queries * c.width), tile(TILE * std::max(c.width, c.value_width)), scores(c.queries * TILE),
        factors(c.queries) {}
};

// `found` holds for each query its output, not yet divided by the sum of weights, its greatest score, and that sum.
void attend_part(const Call& c, int64_t head, int64_t first, int64_t end, Scratch& scratch, float* found) {
  const Unpack unpack_keys = unpack_of(c.key_form), unpack_values = unpack_of(c.value_form);
  const uint8_t* visible = c.visible + head / c.heads * c.visible_stride;
  const int64_t record = c.value_width + 2;
  for (int64_t q = 0; q < c.queries; q++) {
    std::fill_n(found + q * record, record, 0.f);
    found[q * record + c.value_width] = NEVER;
  }
  for (int64_t i = 0; i < c.queries * c.width; i++)
    scratch.query[i] = c.query[head * c.queries * c.width + i] * static_cast<float>(c.scaling);
  float* tile = scratch.tile.data();
  for (int64_t start = first; start < end; start += TILE) {
    const int64_t slots = std::min(TILE, end - start), slot = head * c.slots + start;
    if (std::all_of(visible + start, visible + start + slots, [](uint8_t sees) { return !sees; })) continue;
    unpack_keys(c.keys + slot * c.key_bytes, slots, c.width, tile);
    if (start < c.sink_size)
      std::memcpy(tile, c.sinks + (head * c.sink_size + start) * c.width,
                  std::min(slots, c.sink_size - start) * c.width * sizeof(float));
    for (int64_t q = 0; q < c.queries; q++) {
      float *scores = scratch.scores.data() + q * TILE, *totals = found + q * record + c.value_width;
      scores_of(scratch.query.data() + q * c.width, tile, slots, c.width, scores);
      scratch.factors[q] = soften(visible + start, slots, scores, totals[0], totals[1]);
    }
    unpack_values(c.values + slot * c.value_bytes, slots, c.value_width, tile);
    for (int64_t q = 0; q < c.queries; q++)
      add_values(scratch.scores.data() + q * TILE, tile, slots, c.value_width, scratch.factors[q], found + q * record);
  }
}

// `found` are the records of one query, `step` floats from one part to the next.
void join_parts(const float* found, int64_t parts, int64_t step, int64_t width, float* output) {
  float most = NEVER, sum = 0;
  for (int64_t part = 0; part < parts; part++) most = std::max(most, found[part * step + width]);
  std::fill_n(output, width, 0.f);
  for (int64_t part = 0; part < parts; part++, found += step) {
    const float factor = exp_of(found[width] - most);
    sum += found[width + 1] * factor;
#pragma omp simd
    for (int64_t i = 0; i < width; i++) output[i] += found[i] * factor;
  }
  for (int64_t i = 0; i < width; i++) output[i] /= sum;
}

}  // namespace

extern "C" void attend_rounded(const Call* call) {
  const Call& c = *call;
  const int64_t parts = (c.slots + PART - 1) / PART, heads = c.rows * c.heads, record = c.value_width + 2;
  std::vector<float> found(heads * parts * c.queries * record);
#pragma omp parallel num_threads(c.threads)
  {
    Scratch scratch(c);
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < heads * parts; unit++) {
      const int64_t first = unit % parts * PART, end = std::min(first + PART, c.slots);
      attend_part(c, unit / parts, first, end, scratch, found.data() + unit * c.queries * record);
    }
#pragma omp for schedule(static)
    for (int64_t each = 0; each < heads * c.queries; each++) {
      const float* first = found.data() + (each / c.queries * parts * c.queries + each % c.queries) * record;
      join_parts(first, parts, c.queries * record, c.value_width, c.output + each * c.value_width);
    }
  }
}
