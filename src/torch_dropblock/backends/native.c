/* The native backend: draw and apply on the CPU in one pass over memory; called by native.py.

   It uses no header of Python or PyTorch, so one library serves all their versions. It is linked to no OpenMP library:
   the loader resolves its symbols in PyTorch's, which is loaded before, so both share threads. */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
#define INLINE static inline __attribute__((always_inline))

enum { CHUNK = 1 << 12 };          /* bytes scaled at once, whose blocks are zeroed while they are in the cache */
#define PHI 0x9E3779B97F4A7C15u

typedef struct {
    int64_t planes, depth, height, width; /* of the mask; 1 for a missing axis */
    int64_t block_depth, block_height, block_width;
    int64_t repeat;   /* consecutive planes of memory that share one mask */
    int64_t unit;     /* consecutive elements of memory that make one unit of the mask */
    int64_t channels; /* planes whose units are interleaved in memory */
    int64_t dtype;    /* 0: float32, 1: bfloat16, 2: float64, 3: float16 */
    int64_t positions;
    int64_t streams, stream_length, per_group, group; /* `Streams` of blocks.py */
} Layout;

INLINE int64_t valid_rows(const Layout *b) { return b->height - b->block_height + 1; }
INLINE int64_t valid_columns(const Layout *b) { return b->width - b->block_width + 1; }
INLINE int64_t valid(const Layout *b) { return (b->depth - b->block_depth + 1) * valid_rows(b) * valid_columns(b); }
INLINE int64_t words(const Layout *b) { return (b->width + 31) / 32; }
INLINE int64_t mask_words(const Layout *b) { return (b->depth * b->height * words(b) + 1) / 2 * 2; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* The first corner of the block at position `place` of a plane; rows are numbered through all layers. */
typedef struct { int64_t row, column; } Corner;

INLINE Corner corner(const Layout *b, uint32_t place, uint32_t columns)
{
    uint32_t row = place / columns;
    return (Corner){row + (b->depth > 1 ? row / valid_rows(b) * (b->block_height - 1) : 0), place - row * columns};
}

static const int32_t *first_from(const int32_t *seeds, const int32_t *end, int64_t position)
{
    while (seeds < end) {
        const int32_t *middle = seeds + (end - seeds) / 2;
        if (*middle < position) seeds = middle + 1;
        else end = middle;
    }
    return seeds;
}

static int by_position(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

INLINE void sort(int32_t *seeds, int64_t count)
{
    if (count > 64) {
        qsort(seeds, count, sizeof *seeds, by_position);
        return;
    }
    for (int64_t i = 1; i < count; i++) {
        int32_t seed = seeds[i];
        int64_t j = i;
        for (; j && seeds[j - 1] > seed; j--) seeds[j] = seeds[j - 1];
        seeds[j] = seed;
    }
}

/* --- drawing ------------------------------------------------------------------------------------------------- */

INLINE uint64_t mix(uint64_t word)
{
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9u;
    word = (word ^ word >> 27) * 0x94D049BB133111EBu;
    return word ^ word >> 31;
}

/* Return the base of a stream's words; the caller has mixed `key`. */
INLINE uint64_t base_of(uint64_t key, int64_t stream) { return mix(key + (uint64_t)(stream + 1) * PHI); }

/* Return the number of seeds that a stream draws, including those beyond its end: `_counts` of seeds.py. */
static int64_t count_of(uint64_t base, const double *table)
{
    int64_t numbers = (int64_t)table[0], many = 0;
    for (int64_t i = 0; i < numbers; i++) {
        double uniform = (double)(int64_t)(mix(base + (uint64_t)i * PHI) >> 11) * 0x1p-53;
        int k = 1;
        while (table[k] <= uniform) k++; /* the last entry is 1 */
        many += k - 1;
    }
    return many;
}

/* Draw the seeds of a stream, sorted, and return their number. */
static int64_t draw_stream(const Layout *b, int64_t stream, uint64_t base, int64_t numbers, int64_t many, int32_t *seeds)
{
    int64_t start = stream / b->per_group * b->group + stream % b->per_group * b->stream_length;
    int64_t end = least(least(start + b->stream_length, (stream / b->per_group + 1) * b->group), b->positions), count = 0;
    base += (uint64_t)numbers * PHI;
    for (int64_t i = 0; i < many; i++, base += PHI) {
        int64_t seed = start + (int64_t)((mix(base) >> 17) * (uint64_t)b->stream_length >> 47);
        if (seed < end) seeds[count++] = (int32_t)seed;
    }
    sort(seeds, count);
    return count;
}

/* Draw the seeds of all streams, sorted, and return their number, or -1 if memory is short. The caller frees them. */
static int64_t draw_seeds(const Layout *b, uint64_t key, const double *table, int threads, int32_t **seeds)
{
    int64_t *ends = malloc((b->streams + 1) * sizeof *ends), total = 0, count = 0;
    *seeds = NULL;
    if (!ends) return -1;
    key = mix(key);
#pragma omp parallel for num_threads(threads)
    for (int64_t s = 0; s < b->streams; s++) ends[s + 1] = count_of(base_of(key, s), table);
    ends[0] = 0;
    for (int64_t s = 0; s < b->streams; s++) total = ends[s + 1] += total;
    *seeds = malloc((total + 1) * sizeof **seeds);
    if (*seeds) {
        int64_t lengths[threads], froms[threads];
        memset(lengths, 0, sizeof lengths);
#pragma omp parallel num_threads(threads)
        {
            int t = omp_get_thread_num(), n = omp_get_num_threads();
            int64_t low = b->streams * t / n, high = b->streams * (t + 1) / n;
            int32_t *to = *seeds + (froms[t] = ends[low]);
            for (int64_t s = low; s < high; s++)
                to += draw_stream(b, s, base_of(key, s), (int64_t)table[0], ends[s + 1] - ends[s], to);
            lengths[t] = to - *seeds - ends[low];
        }
        for (int t = 0; t < threads; t++) { /* close the gaps left by seeds beyond the end of their stream */
            if (lengths[t]) memmove(*seeds + count, *seeds + froms[t], lengths[t] * sizeof **seeds);
            count += lengths[t];
        }
    }
    free(ends);
    return *seeds ? count : -1;
}

/* --- counting ------------------------------------------------------------------------------------------------ */

/* Set the bits of blocks in a mask of 32-bit words: row by row, word by word, channel by channel. */
CLONES static void mark(const Layout *b, const int32_t *seeds, const int32_t *end, uint32_t first_plane, int64_t channels,
                        uint32_t *mask)
{
    uint32_t per_plane = (uint32_t)valid(b), columns = (uint32_t)valid_columns(b);
    int64_t stride = words(b) * channels, reach = b->block_height * stride;
    for (; seeds < end; seeds++) {
        uint32_t plane = (uint32_t)*seeds / per_plane;
        Corner at = corner(b, (uint32_t)*seeds - plane * per_plane, columns);
        int64_t low = at.column / 32, high = (at.column + b->block_width - 1) / 32;
        uint32_t bits = ~0u << at.column % 32, last = ~0u >> (31 - (at.column + b->block_width - 1) % 32);
        uint32_t *word = mask + at.row * stride + low * channels + (plane - first_plane);
        for (int64_t w = low; w <= high; w++, word += channels, bits = ~0u) {
            if (w == high) bits &= last;
            for (int64_t z = 0; z < b->block_depth; z++) {
                uint32_t *row = word + z * b->height * stride, *stop = row + reach;
                for (; row < stop; row += stride) *row |= bits;
            }
        }
    }
}

INLINE int64_t common(int64_t a, int64_t b, int64_t length) { int64_t d = llabs(a - b); return d < length ? length - d : 0; }

/* Return the number of units that the blocks of whole planes drop. */
CLONES static int64_t count_some(const Layout *blocks, const int32_t *seeds, const int32_t *end, uint32_t *mask)
{
    const Layout copy = *blocks, *b = &copy; /* a local copy, which the compiler sees that `mask` cannot alias */
    int64_t size = mask_words(b), block = b->block_depth * b->block_height * b->block_width, dropped = 0;
    uint32_t per_plane = (uint32_t)valid(b), columns = (uint32_t)valid_columns(b);
    while (seeds < end) {
        uint32_t plane = (uint32_t)*seeds / per_plane * per_plane;
        int64_t next = (int64_t)plane + per_plane, n = 1;
        while (seeds + n < end && seeds[n] < next) n++;
        if (n == 1) {
            dropped += block;
        } else if (n == 2 && b->depth == 1) {
            Corner one = corner(b, seeds[0] - plane, columns), two = corner(b, seeds[1] - plane, columns);
            dropped += 2 * block - common(one.row, two.row, b->block_height) * common(one.column, two.column, b->block_width);
        } else {
            for (int64_t i = 0; i < size; i++) mask[i] = 0;
            mark(b, seeds, seeds + n, plane / per_plane, 1, mask);
            for (int64_t i = 0; i < size; i += 2) {
                uint64_t pair;
                memcpy(&pair, mask + i, 8);
                dropped += __builtin_popcountll(pair);
            }
        }
        seeds += n;
    }
    return dropped;
}

/* Count the dropped units of the planes whose first seed is in the t-th of n parts of the seeds. */
static int64_t count_part(const Layout *b, const int32_t *seeds, int64_t count, int t, int n, uint32_t *mask)
{
    const int32_t *end = seeds + count, *low = seeds + count * t / n, *high = seeds + count * (t + 1) / n;
    int64_t per_plane = valid(b);
    if (per_plane == 1) { /* a seed drops a whole plane, once */
        int64_t planes = 0;
        for (; low < high; low++) planes += low == seeds || low[0] != low[-1];
        return planes * b->depth * b->height * b->width;
    }
    while (low > seeds && low < end && low[0] / per_plane == low[-1] / per_plane) low++;
    while (high > seeds && high < end && high[0] / per_plane == high[-1] / per_plane) high++;
    return count_some(b, low, high, mask);
}

/* --- applying ------------------------------------------------------------------------------------------------ */

INLINE float from_bfloat16(uint16_t bits) { uint32_t wide = (uint32_t)bits << 16; float x; memcpy(&x, &wide, 4); return x; }
INLINE uint16_t to_bfloat16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return (uint16_t)(x != x ? 0x7fc0u : bits);
}
/* All bits where the condition holds, else none: a select that is vectorised. */
#define WHERE(condition) (-(uint32_t)(condition))

INLINE float from_float16(uint16_t half)
{
    uint32_t bits = (uint32_t)(half & 0x7fffu) << 13; /* the exponent is 112 too small */
    float x;
    memcpy(&x, &bits, 4);
    x *= 0x1p112f; /* right for subnormal numbers too */
    memcpy(&bits, &x, 4);
    bits |= (WHERE((half & 0x7fffu) >= 0x7c00u) & 0x7f800000u) | (uint32_t)(half & 0x8000u) << 16; /* inf and nan */
    memcpy(&x, &bits, 4);
    return x;
}
INLINE uint16_t to_float16(float x)
{
    uint32_t bits, sign, normal, small, tiny, half;
    memcpy(&bits, &x, 4);
    sign = bits >> 16 & 0x8000u, bits &= 0x7fffffffu;
    normal = (bits - 0x38000000u + 0xfffu + (bits >> 13 & 1u)) >> 13; /* rounded to the nearest, ties to even */
    float y;
    memcpy(&y, &bits, 4);
    y += 0.5f; /* the addition rounds a subnormal result to the last bits */
    memcpy(&small, &y, 4);
    tiny = WHERE(bits < 0x38800000u);
    half = (tiny & (small - 0x3f000000u)) | (~tiny & normal);
    tiny = WHERE(bits >= 0x477ff000u); /* 65520 and more */
    half = (tiny & 0x7c00u) | (~tiny & half);
    return (uint16_t)(half | sign | (WHERE(bits > 0x7f800000u) & 0x0200u));
}
#define SAME(x) (x)

/* Prefetch the memory one chunk ahead: the processor's own prefetching stops at the end of a page. */
INLINE void prefetch(const void *in, void *out)
{
    __builtin_prefetch((const char *)in + CHUNK), __builtin_prefetch((char *)out + CHUNK, 1);
}

/* For each dtype: `scale` scales `n` elements; `row` scales a row of interleaved channels, with 0 where the bit of a
   channel's mask is set. Both work by whole cache lines, then on the rest. */
#define APPLY(NAME, T, OP, FROM, TO)                                                                                 \
    CLONES static void scale_##NAME(const void *input, void *output, int64_t n, double scale)                        \
    {                                                                                                                \
        enum { LINE = 64 / sizeof(T) };                                                                              \
        const T *x = input;                                                                                          \
        T *y = output;                                                                                               \
        OP s = (OP)scale;                                                                                            \
        for (; n >= LINE; n -= LINE, x += LINE, y += LINE) {                                                         \
            prefetch(x, y);                                                                                          \
            _Pragma("omp simd") for (int i = 0; i < LINE; i++) y[i] = TO(FROM(x[i]) * s);                            \
        }                                                                                                            \
        for (int i = 0; i < n; i++) y[i] = TO(FROM(x[i]) * s);                                                       \
    }                                                                                                                \
    CLONES static void row_##NAME(const void *input, void *output, const uint32_t *mask, int64_t width,              \
                                  int64_t channels, double scale)                                                    \
    {                                                                                                                \
        enum { LINE = 64 / sizeof(T) };                                                                              \
        const T *x = input;                                                                                          \
        T *y = output;                                                                                               \
        OP s = (OP)scale;                                                                                            \
        for (int64_t w = 0; w < width; w++) {                                                                        \
            const uint32_t *dropped = mask + w / 32 * channels;                                                      \
            uint32_t bit = 1u << w % 32;                                                                             \
            int64_t n = channels;                                                                                    \
            for (; n >= LINE; n -= LINE, x += LINE, y += LINE, dropped += LINE) {                                    \
                prefetch(x, y);                                                                                      \
                _Pragma("omp simd") for (int i = 0; i < LINE; i++) {                                                 \
                    T scaled = TO(FROM(x[i]) * s);                                                                   \
                    y[i] = dropped[i] & bit ? 0 : scaled;                                                            \
                }                                                                                                    \
            }                                                                                                        \
            for (; n; n--, x++, y++, dropped++) *y = *dropped & bit ? 0 : TO(FROM(*x) * s);                          \
        }                                                                                                            \
    }
APPLY(float32, float, float, SAME, SAME)
APPLY(bfloat16, uint16_t, float, from_bfloat16, to_bfloat16)
APPLY(float64, double, double, SAME, SAME)
APPLY(float16, uint16_t, float, from_float16, to_float16)

static const struct {
    int64_t size;
    void (*scale)(const void *, void *, int64_t, double);
    void (*row)(const void *, void *, const uint32_t *, int64_t, int64_t, double);
} DTYPES[] = {{4, scale_float32, row_float32}, {2, scale_bfloat16, row_bfloat16}, {8, scale_float64, row_float64},
               {2, scale_float16, row_float16}};

/* Zero `count` stretches of `length` bytes (at least 2) whose starts are `step` bytes apart. */
INLINE void zero(char *p, int64_t count, int64_t step, int64_t length)
{
    if (length > 32) {
        for (; count--; p += step) memset(p, 0, length);
    } else if (length >= 16) { /* two overlapping stores are faster than a call */
        for (; count--; p += step) memset(p, 0, 16), memset(p + length - 16, 0, 16);
    } else if (length >= 8) {
        for (; count--; p += step) memset(p, 0, 8), memset(p + length - 8, 0, 8);
    } else if (length >= 4) {
        for (; count--; p += step) memset(p, 0, 4), memset(p + length - 4, 0, 4);
    } else {
        for (; count--; p += step) memset(p, 0, 2);
    }
}

static void apply_planes(const Layout *b, const char *in, char *out, const int32_t *seeds, const int32_t *end,
                         double scale, int64_t low, int64_t high)
{
    int64_t item = DTYPES[b->dtype].size, line = b->width * b->unit * item, plane = b->depth * b->height * line;
    int64_t at_once = plane * b->repeat < CHUNK ? CHUNK / (plane * b->repeat) : 1;
    int64_t length = b->block_width * b->unit * item, lines = b->block_height, layers = b->block_depth;
    if (b->block_width == b->width) { /* the lines of a block are one stretch of memory */
        length *= lines, lines = 1;
        if (b->block_height == b->height) length *= layers, layers = 1;
    }
    seeds = first_from(seeds, end, low * valid(b));
    int64_t from = low * b->repeat * plane, end_of_memory = high * b->repeat * plane;
    for (int64_t stop; low < high; low = stop) {
        stop = least(low + at_once, high);
        int64_t to = least((stop * b->repeat * plane + 63) / 64 * 64, end_of_memory); /* whole lines of the cache */
        if (to > from) DTYPES[b->dtype].scale(in + from, out + from, (to - from) / item, scale);
        from = to;
        for (; seeds < end && *seeds < stop * valid(b); seeds++) {
            int64_t index = (uint32_t)*seeds / (uint32_t)valid(b);
            Corner at = corner(b, *seeds - index * valid(b), valid_columns(b));
            char *first = out + index * b->repeat * plane + at.row * line + at.column * b->unit * item;
            for (int64_t copy = 0; copy < b->repeat; copy++)
                for (int64_t z = 0; z < layers; z++)
                    zero(first + copy * plane + z * b->height * line, lines, line, length);
        }
    }
}

static void apply_rows(const Layout *b, const char *in, char *out, const int32_t *seeds, const int32_t *end,
                       double scale, int64_t low, int64_t high, uint32_t *mask)
{
    int64_t rows = b->depth * b->height, row_words = words(b) * b->channels, sample = -1;
    int64_t line = b->width * b->channels * DTYPES[b->dtype].size, per_sample = b->channels * valid(b);
    for (; low < high; low++) {
        if (low / rows != sample) {
            sample = low / rows;
            memset(mask, 0, rows * row_words * 4);
            seeds = first_from(seeds, end, sample * per_sample);
            mark(b, seeds, first_from(seeds, end, (sample + 1) * per_sample), sample * b->channels, b->channels, mask);
        }
        DTYPES[b->dtype].row(in + low * line, out + low * line, mask + low % rows * row_words, b->width, b->channels, scale);
    }
}

/* Write the input with blocks zeroed and the rest scaled, and return the scale, or -1 if memory is short. A scale below
   0 means that it is to be counted. */
static double apply_seeds(const Layout *b, const void *in, void *out, const int32_t *seeds, int64_t count, double scale,
                          int threads)
{
    int64_t total = b->channels > 1 ? b->planes / b->channels * b->depth * b->height : b->planes;
    int64_t size = mask_words(b) * b->channels, dropped = 0, units = b->planes * b->depth * b->height * b->width;
    uint32_t *masks = malloc(threads * size * sizeof *masks);
    if (!masks) return -1;
    double counted = scale;
#pragma omp parallel num_threads(threads)
    {
        int t = omp_get_thread_num(), n = omp_get_num_threads();
        uint32_t *mask = masks + t * size;
        double factor = scale;
        if (scale < 0) {
            int64_t part = count_part(b, seeds, count, t, n, mask);
#pragma omp atomic
            dropped += part;
#pragma omp barrier
            factor = dropped < units ? (double)units / (double)(units - dropped) : 0.0;
            if (t == 0) counted = factor;
        }
        int64_t low = total * t / n, high = total * (t + 1) / n;
        if (b->channels > 1) apply_rows(b, in, out, seeds, seeds + count, factor, low, high, mask);
        else apply_planes(b, in, out, seeds, seeds + count, factor, low, high);
    }
    free(masks);
    return counted;
}

/* `INTERFACE` of native.py; increase both with every change of `Layout` or of a function's arguments. */
int drop_block_interface(void) { return 5; }

/* Draw and apply, and return the scale, or -1 if memory is short. A scale below 0 means that it is to be counted. */
double drop_block(const Layout *b, uint64_t key, const double *table, int threads, const void *in, void *out, double scale)
{
    int32_t *seeds;
    int64_t count = draw_seeds(b, key, table, threads, &seeds);
    scale = count < 0 ? -1 : apply_seeds(b, in, out, seeds, count, scale, threads);
    free(seeds);
    return scale;
}

/* Set `length` bits of a string of words from bit `first` on. */
INLINE void set_bits(uint32_t *words, uint32_t first, int64_t length)
{
    words += first / 32;
    if (length <= 32) {
        uint64_t bits = ~(uint64_t)0 >> (64 - length) << first % 32;
        words[0] |= (uint32_t)bits;
        if (bits >> 32) words[1] |= (uint32_t)(bits >> 32);
    } else {
        int64_t end = first % 32 + length;
        *words++ |= ~0u << first % 32;
        for (end -= 32; end >= 32; end -= 32) *words++ = ~0u;
        if (end) *words |= ~(~0u << end);
    }
}

/* Count the bits of `n` words that are 1. */
CLONES static int64_t ones(const uint32_t *words, int64_t n)
{
    int64_t sum = 0;
    for (int64_t i = 0; i < n; i++) sum += __builtin_popcount(words[i]);
    return sum;
}

/* Draw a mask of bits, 1 where dropped, and return the scale, or -1 if memory is short. A plane is a string of bits that
   begins a word; if channels are interleaved, the channels of a unit are. This is the format of packed.py. */
double drop_block_mask(const Layout *layout, uint64_t key, const double *table, int threads, uint32_t *mask)
{
    const Layout copy = *layout, *b = &copy; /* a local copy, which the compiler sees that `mask` cannot alias */
    int64_t plane = b->depth * b->height * b->width, units = b->planes * plane, dropped = 0, per_plane = valid(b);
    /* the parts of the mask, each of whole words: samples if channels are interleaved, else planes */
    int64_t channels = b->channels, parts = b->planes / channels;
    int64_t string = channels > 1 ? (channels + 31) / 32 : (plane + 31) / 32, size = channels > 1 ? plane * string : string;
    int32_t *seeds;
    int64_t count = draw_seeds(b, key, table, threads, &seeds);
    if (count < 0) return -1;
#pragma omp parallel num_threads(threads) reduction(+ : dropped)
    {
        int64_t low = parts * omp_get_thread_num() / omp_get_num_threads();
        int64_t high = parts * (omp_get_thread_num() + 1) / omp_get_num_threads();
        memset(mask + low * size, 0, (high - low) * size * sizeof *mask);
        const int32_t *end = first_from(seeds, seeds + count, high * channels * per_plane);
        for (const int32_t *seed = first_from(seeds, end, low * channels * per_plane); seed < end; seed++) {
            uint32_t index = (uint32_t)*seed / (uint32_t)per_plane, part = index, channel = 0;
            Corner at = corner(b, (uint32_t)*seed - index * (uint32_t)per_plane, (uint32_t)valid_columns(b));
            if (channels > 1) part = index / (uint32_t)channels, channel = index - part * (uint32_t)channels;
            uint32_t *words = mask + part * size + channel / 32;
            for (int64_t z = 0; z < b->block_depth; z++) {
                int64_t unit = (z * b->height + at.row) * b->width + at.column, end_unit = unit + b->block_height * b->width;
                for (; unit < end_unit; unit += b->width) {
                    if (channels == 1) set_bits(words, (uint32_t)unit, b->block_width);
                    else for (int64_t x = 0; x < b->block_width; x++) words[(unit + x) * string] |= 1u << channel % 32;
                }
            }
        }
        dropped += ones(mask + low * size, (high - low) * size);
    }
    free(seeds);
    return dropped < units ? (double)units / (double)(units - dropped) : 0.0;
}
