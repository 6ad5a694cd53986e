// Runs launches that it reads from a file, and writes their buffers back.
//
// A launch: the kernel's name (8-byte length, bytes), grid x, y, z, threads, the number of arguments, and
// for each: 0 and a number (of a float: its bits), 1, a length and bytes, 2 for null, or 3, a length and as
// many places, each the argument that it lies in, counted from 1 (0: null), and an offset in bytes. All
// numbers have 8 bytes, little endian.
// What comes back is every buffer of every launch, one after the other, padding excluded.
#include <string>
#include <tuple>
#include <utility>

struct Argument {
    uint64_t value;
    uint64_t length;
};

// A buffer stands between two guards, which a kernel must leave as they are.
constexpr size_t GUARD = 256;
constexpr unsigned char MARK = 0xA5;

template <class A> struct From {
    static A of(uint64_t x) { return (A)x; }
};
template <> struct From<float> {
    static float of(uint64_t x) { return __uint_as_float((unsigned)x); }
};
template <class A> struct From<A*> {
    static A* of(uint64_t x) { return (A*)x; }
};

template <class... A, size_t... I>
std::function<void()> prepared(void (*kernel)(A...), const std::vector<Argument>& a, std::index_sequence<I...>) {
    // Behind the parameters may stand what places point to.
    if (a.size() < sizeof...(A)) emulator::fail("fewer arguments than the kernel takes");
    return [=] { kernel(From<A>::of(a[I].value)...); };
}
template <class... A> std::function<void()> bound(void (*kernel)(A...), const std::vector<Argument>& a) {
    return prepared(kernel, a, std::index_sequence_for<A...>());
}

static std::function<void()> find(const std::string& name, const std::vector<Argument>& a) {
#define KERNEL(NAME) \
    if (name == #NAME) return bound(NAME, a);
    KERNELS
    emulator::fail("no kernel of this name");
}

static uint64_t number(FILE* f) {
    uint64_t x;
    if (fread(&x, 8, 1, f) != 1) emulator::fail("the input ends too early");
    return x;
}

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    FILE *in = fopen(argv[1], "rb"), *out = fopen(argv[2], "wb");
    if (!in || !out) return 2;
    for (int c; (c = fgetc(in)) != EOF;) {
        ungetc(c, in);
        std::string name(number(in), ' ');
        if (fread(&name[0], 1, name.size(), in) != name.size()) return 2;
        Dim grid = {(unsigned)number(in), (unsigned)number(in), (unsigned)number(in)};
        unsigned block = (unsigned)number(in);
        std::vector<Argument> arguments(number(in));
        // Where places stand, and what each of them is.
        std::vector<std::vector<uint64_t>> places(arguments.size());
        for (size_t i = 0; i < arguments.size(); i++) {
            Argument& a = arguments[i];
            uint64_t kind = number(in);
            a.value = kind == 2 ? 0 : number(in);
            a.length = 0;
            if (kind == 3) {
                places[i].resize(2 * a.value);
                for (uint64_t& x : places[i]) x = number(in);
            }
            if (kind != 1) continue;
            a.length = a.value;
            unsigned char* memory = (unsigned char*)aligned_alloc(256, (a.length + 3 * GUARD) / 256 * 256);
            memset(memory, MARK, (a.length + 3 * GUARD) / 256 * 256);
            if (fread(memory + GUARD, 1, a.length, in) != a.length) return 2;
            a.value = (uint64_t)(memory + GUARD);
        }
        for (size_t i = 0; i < arguments.size(); i++) {
            std::vector<uint64_t>& all = places[i];
            if (all.empty()) continue;
            for (size_t j = 0; j < all.size(); j += 2) {
                all[j / 2] = all[j] ? arguments[all[j] - 1].value + all[j + 1] : 0;
            }
            arguments[i].value = (uint64_t)all.data();
        }
        emulator::launch(grid, block, find(name, arguments));
        for (Argument& a : arguments) {
            if (!a.length) continue;
            unsigned char* memory = (unsigned char*)a.value;
            for (size_t i = 0; i < GUARD; i++) {
                if (memory[i - GUARD] != MARK || memory[a.length + i] != MARK)
                    emulator::fail("a kernel wrote outside its buffers");
            }
            if (fwrite(memory, 1, a.length, out) != a.length) return 2;
            free(memory - GUARD);
        }
    }
    return fclose(out) == 0 ? 0 : 2;
}
