/* AdamW and stochastic rounding in one pass over memory, for a CPU. `featherweight/kernels/native.py` compiles and calls it.
 *
 * Each function computes what its twin in PyTorch computes, operation by operation: products are fused with sums only where
 * PyTorch's vector code fuses them (fmaf), so it is compiled with -ffp-contract=off and never with -ffast-math. Loops run over
 * blocks that stay in the first-level cache and hold one kind of operation each, which compilers turn into vector code.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 256 /* elements at once: one block of 8-bit codes, two of 4-bit codes */

enum { FLOAT32 = 0, BFLOAT16 = 1, CODES8 = 2, CODES4 = 3 };

typedef struct {
    int64_t kind;
    void *data;                 /* float32 or bfloat16 values, or codes */
    float *scale;               /* one for each block of codes */
    const float *values;        /* what the codes stand for */
    const uint8_t *first_code;  /* for each upper half of a float32: the code at the lower end of its interval */
    const float *next_boundary; /* the only boundary between codes inside of this interval */
    int64_t first;              /* index of the first element, as the hash counts; bfloat16 only */
    uint32_t first_key, second_key;
} Moment;

typedef struct {
    int64_t count;
    const void *grad;
    int64_t grad_kind; /* FLOAT32 or BFLOAT16 */
    Moment moments[2];
    float rest1, beta2, rest2, correction1, correction2_sqrt, eps;
    int64_t is_official;
    void *out;
    int64_t writes; /* 0: out is the direction, float32; 1: a float32 weight; 2: a bfloat16 weight */
    float alpha, beta;
    int64_t first; /* index of the weight's first element, as the hash counts */
    uint32_t first_key, second_key;
} Step;

typedef struct {
    int64_t count;
    const float *source;
    uint16_t *out;
    int64_t is_update; /* out <- round(beta * out + alpha * source), else out <- round(source) */
    float alpha, beta;
    int64_t first;
    uint32_t first_key, second_key;
} Rounding;

static inline float as_float(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }
static inline uint32_t as_bits(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }

static inline uint32_t hashed(uint32_t word, uint32_t first_key, uint32_t second_key) {
    word ^= first_key;
    word ^= word >> 16;
    word *= 0x7FEB352Du;
    word ^= word >> 15;
    word ^= second_key;
    word *= 0x846CA68Bu;
    return word ^ (word >> 16);
}

/* Two elements share a word of the hash, the even one its lower half. */
static void round_to_bf16(
    uint16_t *out, const float *values, int n, int64_t first, uint32_t first_key, uint32_t second_key
) {
    for (int i = 0; i < n; i++) {
        uint32_t index = (uint32_t)(first + i);
        uint32_t bits = (hashed(index >> 1, first_key, second_key) >> ((index & 1) << 4)) & 0xFFFFu;
        uint32_t raw = as_bits(values[i]);
        uint32_t magnitude = raw & 0x7FFFFFFFu;
        uint32_t rounded = magnitude + bits;
        /* Sums above the largest finite number are cut, then the maximum restores infinities and NaN. */
        rounded = rounded < 0x7F7FFFFFu ? rounded : 0x7F7FFFFFu;
        rounded = rounded > magnitude ? rounded : magnitude;
        rounded |= magnitude > 0x7F800000u ? 0x00400000u : 0u; /* a NaN must not be cut to infinity */
        out[i] = (uint16_t)((rounded | (raw ^ magnitude)) >> 16);
    }
}

static void widen(float *out, const uint16_t *values, int n) {
    for (int i = 0; i < n; i++) out[i] = as_float((uint32_t)values[i] << 16);
}

static void read_codes(float *restrict out, const uint8_t *restrict codes, const float *restrict values, float scale, int n) {
    for (int i = 0; i < n; i++) out[i] = values[codes[i]] * scale;
}

static void read_packed(float *restrict out, const uint8_t *restrict packed, const float *restrict values, float scale, int n) {
    for (int i = 0; i < n; i++) out[i] = values[(packed[i >> 1] >> ((i & 1) << 2)) & 15] * scale;
}

/* Returns the largest magnitude; a NaN is larger than all. */
static float largest(const float *values, int n) {
    uint32_t most = 0;
    for (int i = 0; i < n; i++) {
        uint32_t magnitude = as_bits(values[i]) & 0x7FFFFFFFu;
        most = magnitude > most ? magnitude : most;
    }
    return as_float(most);
}

static void find_codes(uint8_t *codes, const float *values, float scale, const Moment *moment, int n) {
    float normalized[BLOCK];
    uint32_t upper[BLOCK];
    float divisor = scale == 0 ? 1.0f : scale;
    for (int i = 0; i < n; i++) normalized[i] = values[i] / divisor;
    for (int i = 0; i < n; i++) upper[i] = as_bits(normalized[i]) >> 16;
    const uint8_t *restrict first_code = moment->first_code;
    const float *restrict next_boundary = moment->next_boundary;
    for (int i = 0; i < n; i++)
        codes[i] = (uint8_t)(first_code[upper[i]] + (normalized[i] > next_boundary[upper[i]]));
}

static void read_moment(float *out, const Moment *moment, int64_t start, int n) {
    switch (moment->kind) {
    case FLOAT32: memcpy(out, (const float *)moment->data + start, 4 * (size_t)n); break;
    case BFLOAT16: widen(out, (const uint16_t *)moment->data + start, n); break;
    case CODES8: read_codes(out, (const uint8_t *)moment->data + start, moment->values, moment->scale[start / BLOCK], n); break;
    default:
        for (int i = 0; i < n; i += BLOCK / 2) {
            int m = n - i < BLOCK / 2 ? n - i : BLOCK / 2;
            const uint8_t *packed = (const uint8_t *)moment->data + (start + i) / 2;
            read_packed(out + i, packed, moment->values, moment->scale[(start + i) / (BLOCK / 2)], m);
        }
    }
}

static void write_moment(const float *values, const Moment *moment, int64_t start, int n) {
    switch (moment->kind) {
    case FLOAT32: memcpy((float *)moment->data + start, values, 4 * (size_t)n); break;
    case BFLOAT16:
        round_to_bf16((uint16_t *)moment->data + start, values, n, moment->first + start, moment->first_key, moment->second_key);
        break;
    case CODES8: {
        float scale = moment->scale[start / BLOCK] = largest(values, n);
        find_codes((uint8_t *)moment->data + start, values, scale, moment, n);
        break;
    }
    default:
        for (int i = 0; i < n; i += BLOCK / 2) {
            int m = n - i < BLOCK / 2 ? n - i : BLOCK / 2;
            uint8_t codes[BLOCK / 2 + 1];
            float scale = moment->scale[(start + i) / (BLOCK / 2)] = largest(values + i, m);
            find_codes(codes, values + i, scale, moment, m);
            codes[m] = 0; /* the high half of the last byte of an odd number of codes */
            uint8_t *packed = (uint8_t *)moment->data + (start + i) / 2;
            for (int j = 0; j < (m + 1) / 2; j++) packed[j] = (uint8_t)(codes[2 * j] | codes[2 * j + 1] << 4);
        }
    }
}

/* Update blocks [first_block, last_block) of a parameter or core. */
void featherweight_adamw(const Step *step, int64_t first_block, int64_t last_block) {
    float grad[BLOCK], m[BLOCK], v[BLOCK], direction[BLOCK], weight[BLOCK];
    const float rest1 = step->rest1, beta2 = step->beta2, rest2 = step->rest2, eps = step->eps;
    const float correction1 = step->correction1, correction2_sqrt = step->correction2_sqrt;
    for (int64_t block = first_block; block < last_block; block++) {
        int64_t start = block * BLOCK;
        int n = step->count - start < BLOCK ? (int)(step->count - start) : BLOCK;
        if (step->grad_kind == BFLOAT16) widen(grad, (const uint16_t *)step->grad + start, n);
        else memcpy(grad, (const float *)step->grad + start, 4 * (size_t)n);
        read_moment(m, &step->moments[0], start, n);
        read_moment(v, &step->moments[1], start, n);
        if (rest1 < 0.5f) /* torch's lerp starts from the nearer end */
            for (int i = 0; i < n; i++) m[i] = fmaf(grad[i] - m[i], rest1, m[i]);
        else
            for (int i = 0; i < n; i++) m[i] = fmaf(grad[i] - m[i], rest1 - 1.0f, grad[i]);
        for (int i = 0; i < n; i++) v[i] = fmaf(grad[i] * rest2, grad[i], v[i] * beta2);
        /* The root of the twin: the inverse of the inverse root. */
        for (int i = 0; i < n; i++) direction[i] = 1.0f / (1.0f / sqrtf(v[i]));
        if (step->is_official)
            for (int i = 0; i < n; i++) direction[i] = m[i] / (direction[i] + eps) * correction1;
        else
            for (int i = 0; i < n; i++) direction[i] = m[i] / (direction[i] / correction2_sqrt + eps) / correction1;
        write_moment(m, &step->moments[0], start, n);
        write_moment(v, &step->moments[1], start, n);
        if (step->writes == 0) {
            memcpy((float *)step->out + start, direction, 4 * (size_t)n);
        } else if (step->writes == 1) {
            float *out = (float *)step->out + start;
            for (int i = 0; i < n; i++) out[i] = fmaf(direction[i], step->alpha, out[i] * step->beta);
        } else {
            uint16_t *out = (uint16_t *)step->out + start;
            widen(weight, out, n);
            for (int i = 0; i < n; i++) weight[i] = fmaf(direction[i], step->alpha, weight[i] * step->beta);
            round_to_bf16(out, weight, n, step->first + start, step->first_key, step->second_key);
        }
    }
}

/* Round blocks [first_block, last_block) to bfloat16, alone or with the update of a weight. */
void featherweight_round(const Rounding *rounding, int64_t first_block, int64_t last_block) {
    float values[BLOCK];
    for (int64_t block = first_block; block < last_block; block++) {
        int64_t start = block * BLOCK;
        int n = rounding->count - start < BLOCK ? (int)(rounding->count - start) : BLOCK;
        const float *source = rounding->source + start;
        uint16_t *out = rounding->out + start;
        if (rounding->is_update) {
            widen(values, out, n);
            for (int i = 0; i < n; i++) values[i] = fmaf(source[i], rounding->alpha, values[i] * rounding->beta);
            source = values;
        }
        round_to_bf16(out, source, n, rounding->first + start, rounding->first_key, rounding->second_key);
    }
}
