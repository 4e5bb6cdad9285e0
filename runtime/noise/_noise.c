/* PyTorch's CPU noise: mt19937 and the Box-Muller transform. runtime/noise/_noise_numpy.py does the
   same in NumPy, documents the interface, and is used where this file is not compiled.

   Plain C with branch-free loops that compilers vectorize. On x86-64 with glibc the loops are
   compiled for AVX2 as well, and the version is chosen when the module is loaded. Multiplications
   and additions are never fused and no float is kept in higher precision, so that every processor
   gives the same bits; setup.py passes the options for GCC and Clang.

   Source: Matsumoto and Nishimura 1998, doi 10.1145/272991.272995; Box and Muller 1958. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define FOR_AVX2_TOO __attribute__((target_clones("avx2", "default")))
#endif
#endif
#ifndef FOR_AVX2_TOO
#define FOR_AVX2_TOO
#endif

#ifdef __GNUC__ /* otherwise Clang keeps a separate function without AVX2 */
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

#ifdef _MSC_VER
#pragma fp_contract(off)
#endif
#if FLT_EVAL_METHOD != 0
#error "this compiler computes float in higher precision, which would give other bits"
#endif

enum { STATE = 624, DISTANCE = 397, BLOCK = 16, HALF = BLOCK / 2 };

typedef struct {
    PyObject_HEAD
    uint32_t state[STATE];
    uint32_t tempered[STATE];
    Py_ssize_t next; /* index into `tempered`; STATE if all are used */
} MT19937;

INLINE uint32_t twisted(uint32_t high, uint32_t low)
{
    uint32_t word = (high & 0x80000000u) | (low & 0x7FFFFFFFu);
    return (word >> 1) ^ ((0u - (low & 1u)) & 0x9908B0DFu);
}

FOR_AVX2_TOO static void next_state(uint32_t *state, uint32_t *tempered)
{
    for (int i = 0; i < STATE - DISTANCE; i++)
        state[i] = state[i + DISTANCE] ^ twisted(state[i], state[i + 1]);
    for (int i = STATE - DISTANCE; i < STATE - 1; i++)
        state[i] = state[i + DISTANCE - STATE] ^ twisted(state[i], state[i + 1]);
    state[STATE - 1] = state[DISTANCE - 1] ^ twisted(state[STATE - 1], state[0]);
    for (int i = 0; i < STATE; i++) {
        uint32_t word = state[i];
        word ^= word >> 11;
        word ^= (word << 7) & 0x9D2C5680u;
        word ^= (word << 15) & 0xEFC60000u;
        tempered[i] = word ^ (word >> 18);
    }
}

INLINE float as_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t as_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Natural logarithm of a normal float: x = 2**power * (1 + f) with 1 + f from sqrt(1/2) to sqrt(2),
   log(1 + f) = 2 artanh(s) with s = f / (2 + f), as a minimax polynomial. */
INLINE float logarithm(float x)
{
    uint32_t bits = as_bits(x) - 0x3F3504F3u;
    float power = (float)((int32_t)bits >> 23);
    float f = as_float((bits & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
    float s = f / (2.0f + f);
    float z = s * s;
    float rest = z * (0.6666677645f + z * (0.3997753237f + z * 0.2987199697f));
    float square = 0.5f * f * f;
    /* 2 s = f - s f and s f = square - s square, so the largest term of the sum is exact */
    return power * 0.693145752f + (f - (square - (s * (square + rest) + power * 1.42860682e-6f)));
}

/* Turn one block, HALF words for the radius and HALF for the angle, into normal numbers, in place. */
INLINE void transform(uint32_t *block)
{
    float radius[HALF], angle[HALF];
    for (int i = 0; i < HALF; i++) {
        float u = (float)(int32_t)(block[i] & 0xFFFFFFu) * 0x1p-24f;
        radius[i] = sqrtf(-2.0f * logarithm(1.0f - u));
        angle[i] = (float)(int32_t)(block[HALF + i] & 0xFFFFFFu) * (6.28318531f * 0x1p-24f);
    }
    for (int i = 0; i < HALF; i++) {
        /* angle = turns * pi / 2 + r; the product is subtracted in three parts, for precision */
        int32_t turns = (int32_t)(angle[i] * 0.636619772f + 0.5f);
        float quarters = (float)turns;
        float r = ((angle[i] - quarters * 1.57079601f) - quarters * 3.13916189e-7f)
            - quarters * 2.89607397e-13f;
        float z = r * r;
        float sine = r + r * z * (-0.1666665494f + z * (0.008332177675f + z * -1.951723379e-4f));
        float cosine = (1.0f - 0.5f * z)
            + z * z * (0.04166664681f + z * (-0.001388736461f + z * 2.443813891e-5f));
        uint32_t swap = 0u - (uint32_t)(turns & 1);
        uint32_t sines = as_bits(sine), cosines = as_bits(cosine);
        uint32_t first = (cosines & ~swap) | (sines & swap);
        uint32_t second = (sines & ~swap) | (cosines & swap);
        first ^= (uint32_t)((turns + 1) & 2) << 30;
        second ^= (uint32_t)(turns & 2) << 30;
        block[i] = as_bits(radius[i] * as_float(first));
        block[HALF + i] = as_bits(radius[i] * as_float(second));
    }
}

FOR_AVX2_TOO static void transform_all(uint32_t *words, Py_ssize_t blocks)
{
    for (Py_ssize_t i = 0; i < blocks; i++)
        transform(words + i * BLOCK);
}

/* The words of a writable buffer whose length is a multiple of `size`; NULL with an error set. */
static uint32_t *words_of(PyObject *array, Py_buffer *view, Py_ssize_t size)
{
    if (PyObject_GetBuffer(array, view, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) < 0)
        return NULL;
    if (view->itemsize != 4 || view->len % (4 * size) || (uintptr_t)view->buf % 4) {
        PyErr_Format(PyExc_ValueError, "expected a multiple of %zd aligned items of 4 bytes", size);
        PyBuffer_Release(view);
        return NULL;
    }
    return view->buf;
}

static PyObject *box_muller(PyObject *Py_UNUSED(module), PyObject *array)
{
    Py_buffer view;
    uint32_t *words = words_of(array, &view, BLOCK);
    if (words == NULL)
        return NULL;
    transform_all(words, view.len / (4 * BLOCK));
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

static PyObject *draw(PyObject *self, PyObject *array)
{
    MT19937 *stream = (MT19937 *)self;
    Py_buffer view;
    uint32_t *words = words_of(array, &view, 1);
    if (words == NULL)
        return NULL;
    for (Py_ssize_t done = 0, size = view.len / 4; done < size;) {
        if (stream->next == STATE) {
            next_state(stream->state, stream->tempered);
            stream->next = 0;
        }
        Py_ssize_t count = STATE - stream->next;
        if (count > size - done)
            count = size - done;
        memcpy(words + done, stream->tempered + stream->next, 4 * (size_t)count);
        stream->next += count;
        done += count;
    }
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

static int seed(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"seed", NULL};
    MT19937 *stream = (MT19937 *)self;
    unsigned int word;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "I:MT19937", names, &word))
        return -1;
    stream->state[0] = word;
    for (uint32_t i = 1; i < STATE; i++) {
        word = 1812433253u * (word ^ (word >> 30)) + i;
        stream->state[i] = word;
    }
    stream->next = STATE;
    return 0;
}

static void dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyMethodDef stream_methods[] = {
    {"draw", draw, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot stream_slots[] = {
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_init, seed},
    {Py_tp_dealloc, dealloc},
    {Py_tp_methods, stream_methods},
    {0, NULL},
};

static PyType_Spec stream_spec = {
    .name = "sdexport.runtime.noise._noise.MT19937",
    .basicsize = sizeof(MT19937),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = stream_slots,
};

static int add_types(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &stream_spec, NULL);
    int failed = type == NULL || PyModule_AddObjectRef(module, "MT19937", type);
    Py_XDECREF(type);
    return failed ? -1 : 0;
}

static PyMethodDef functions[] = {
    {"box_muller", box_muller, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, add_types},
    {0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "sdexport.runtime.noise._noise",
    .m_size = 0,
    .m_methods = functions,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__noise(void)
{
    return PyModuleDef_Init(&definition);
}
