/* Counts the calls that change files below a folder, and makes one of them fail or kill the process.

   FAULT_FOLDER  the folder, without a slash at the end
   FAULT_NUMBER  the call that fails, from 1 on; 0 only counts
   FAULT_KIND    "ENOSPC" or "EIO": it fails; "KILL": the process is killed instead of the call;
                 "SHORT": a call that writes data writes a part of it, and says so; "TORN": the same,
                 but then the process is killed
   FAULT_LOG     a file outside of the folder, to which the name of each call is written. Its lines
                 are of one length, and the size of the file numbers the calls of all processes

   A file descriptor belongs to the folder if /proc says so. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { LINE = 24 };

static int inside(const char *path) {
    const char *folder = getenv("FAULT_FOLDER");
    size_t length = folder ? strlen(folder) : 0;
    return length && !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static int path_inside(int directory, const char *path) {
    char whole[2 * PATH_MAX], link[64];
    ssize_t length;
    if (!path)
        return 0;
    if (path[0] == '/')
        return inside(path);
    if (directory == AT_FDCWD) {
        if (!getcwd(whole, PATH_MAX))
            return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        length = readlink(link, whole, PATH_MAX - 1);
        if (length < 0)
            return 0;
        whole[length] = 0;
    }
    strcat(whole, "/");
    strncat(whole, path, PATH_MAX - 1);
    return inside(whole);
}

static int file_inside(int file) {
    char whole[PATH_MAX], link[64];
    ssize_t length;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    length = readlink(link, whole, sizeof whole - 1);
    if (length < 0)
        return 0;
    whole[length] = 0;
    return inside(whole);
}

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;)
        pause();
}

enum { NO_FAULT, FAILS, PART, PART_THEN_DIES };

/* What happens to this call; errno is set if it fails. */
static int fault(const char *name) {
    const char *wanted = getenv("FAULT_NUMBER"), *kind = getenv("FAULT_KIND");
    const char *log = getenv("FAULT_LOG");
    long number = -1, target = wanted ? atol(wanted) : 0;
    int file = log ? syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0644) : -1;
    if (file >= 0) {
        char line[LINE + 1];
        snprintf(line, sizeof line, "%-*s\n", LINE - 1, name);
        syscall(SYS_write, file, line, LINE);
        number = syscall(SYS_lseek, file, 0, SEEK_CUR) / LINE; /* just behind this line */
        syscall(SYS_close, file);
    }
    if (number != target || !kind)
        return NO_FAULT;
    if (!strcmp(kind, "KILL"))
        die();
    if (!strcmp(kind, "SHORT"))
        return PART;
    if (!strcmp(kind, "TORN"))
        return PART_THEN_DIES;
    errno = !strcmp(kind, "ENOSPC") ? ENOSPC : EIO;
    return FAILS;
}

#define ON_FILE(result, name, parameters, arguments)                                               \
    result name parameters {                                                                       \
        static result(*real) parameters;                                                           \
        int kept = errno;                                                                          \
        if (!real)                                                                                 \
            real = dlsym(RTLD_NEXT, #name);                                                        \
        if (file_inside(file) && fault(#name))                                                     \
            return -1;                                                                             \
        errno = kept;                                                                              \
        return real arguments;                                                                     \
    }
#define ON_PATH(name, parameters, arguments, condition)                                            \
    int name parameters {                                                                          \
        static int(*real) parameters;                                                              \
        int kept = errno;                                                                          \
        if (!real)                                                                                 \
            real = dlsym(RTLD_NEXT, #name);                                                        \
        if ((condition) && fault(#name))                                                           \
            return -1;                                                                             \
        errno = kept;                                                                              \
        return real arguments;                                                                     \
    }

/* A call that writes data. `part` writes less than it was asked to. */
#define WRITES(name, parameters, arguments, file, part)                                            \
    ssize_t name parameters {                                                                      \
        static ssize_t(*real) parameters;                                                          \
        int kept = errno, what;                                                                    \
        ssize_t done;                                                                              \
        if (!real)                                                                                 \
            real = dlsym(RTLD_NEXT, #name);                                                        \
        what = file_inside(file) ? fault(#name) : NO_FAULT;                                        \
        if (what == FAILS)                                                                         \
            return -1;                                                                             \
        errno = kept;                                                                              \
        done = what == NO_FAULT ? real arguments : part;                                           \
        if (what == PART_THEN_DIES)                                                                \
            die();                                                                                 \
        return done;                                                                               \
    }

static size_t less(size_t size) { return (size + 1) / 2; }

static ssize_t part_of(int file, const struct iovec *parts, int count) {
    while (count > 1 && !parts->iov_len)
        parts++, count--;
    return count ? syscall(SYS_write, file, parts->iov_base, less(parts->iov_len)) : 0;
}

/* The system copies at most a file, which may be smaller than half of `size`. */
static size_t few(size_t size) { return size > 256 ? 256 : less(size); }

WRITES(write, (int file, const void *data, size_t size), (file, data, size), file,
       real(file, data, less(size)))
WRITES(pwrite, (int file, const void *data, size_t size, off_t at), (file, data, size, at), file,
       real(file, data, less(size), at))
WRITES(pwrite64, (int file, const void *data, size_t size, off64_t at), (file, data, size, at),
       file, real(file, data, less(size), at))
WRITES(writev, (int file, const struct iovec *parts, int count), (file, parts, count), file,
       part_of(file, parts, count))
WRITES(sendfile, (int file, int from, off_t *at, size_t size), (file, from, at, size), file,
       real(file, from, at, few(size)))
WRITES(sendfile64, (int file, int from, off64_t *at, size_t size), (file, from, at, size), file,
       real(file, from, at, few(size)))
WRITES(copy_file_range,
       (int from, off64_t *at, int file, off64_t *to, size_t size, unsigned flags),
       (from, at, file, to, size, flags), file, real(from, at, file, to, few(size), flags))
ON_FILE(int, fsync, (int file), (file))
ON_FILE(int, fdatasync, (int file), (file))
ON_FILE(int, ftruncate, (int file, off_t size), (file, size))
ON_FILE(int, ftruncate64, (int file, off64_t size), (file, size))
ON_FILE(int, fchmod, (int file, mode_t mode), (file, mode))
ON_PATH(rename, (const char *from, const char *to), (from, to),
        path_inside(AT_FDCWD, from) || path_inside(AT_FDCWD, to))
ON_PATH(renameat, (int a, const char *from, int b, const char *to), (a, from, b, to),
        path_inside(a, from) || path_inside(b, to))
ON_PATH(renameat2, (int a, const char *from, int b, const char *to, unsigned flags),
        (a, from, b, to, flags), path_inside(a, from) || path_inside(b, to))
ON_PATH(link, (const char *from, const char *to), (from, to), path_inside(AT_FDCWD, to))
ON_PATH(symlink, (const char *target, const char *path), (target, path),
        path_inside(AT_FDCWD, path))
ON_PATH(truncate, (const char *path, off_t size), (path, size), path_inside(AT_FDCWD, path))
ON_PATH(unlink, (const char *path), (path), path_inside(AT_FDCWD, path))
ON_PATH(unlinkat, (int folder, const char *path, int flags), (folder, path, flags),
        path_inside(folder, path))
ON_PATH(rmdir, (const char *path), (path), path_inside(AT_FDCWD, path))
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode), path_inside(AT_FDCWD, path))
ON_PATH(chmod, (const char *path, mode_t mode), (path, mode), path_inside(AT_FDCWD, path))

/* A file that fails to close is closed all the same, as on Linux. Only files that were opened to
   be written count. */
static int written(int file) {
    int flags = fcntl(file, F_GETFL);
    return flags >= 0 && (flags & O_ACCMODE) != O_RDONLY && file_inside(file);
}

int close(int file) {
    int kept = errno, failed = written(file) && fault("close"), why = errno;
    errno = kept;
    if (syscall(SYS_close, file))
        return -1;
    if (failed)
        errno = why;
    return failed ? -1 : 0;
}

/* Creating a file; opening for reading does not count. */
static int creates(int folder, const char *path, int flags) {
    return (flags & O_ACCMODE) != O_RDONLY && path_inside(folder, path);
}
#define OPEN(name, parameters, folder)                                                             \
    int name parameters {                                                                          \
        mode_t mode = 0;                                                                           \
        int kept = errno;                                                                          \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                       \
            va_list rest;                                                                          \
            va_start(rest, flags);                                                                 \
            mode = va_arg(rest, mode_t);                                                           \
            va_end(rest);                                                                          \
        }                                                                                          \
        if (creates(folder, path, flags) && fault("open"))                                         \
            return -1;                                                                             \
        errno = kept;                                                                              \
        return syscall(SYS_openat, folder, path, flags, mode);                                     \
    }
OPEN(open, (const char *path, int flags, ...), AT_FDCWD)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD)
OPEN(openat, (int folder, const char *path, int flags, ...), folder)
OPEN(openat64, (int folder, const char *path, int flags, ...), folder)

/* Streams of C, which C++'s are too. What they write comes through `writev` and `write` above if a
   library does it itself; what the C library flushes does not. */
static FILE *open_stream(const char *name, const char *path, const char *mode) {
    FILE *(*real)(const char *, const char *) = dlsym(RTLD_NEXT, name);
    int kept = errno, writes = strpbrk(mode, "wa+") != NULL;
    if (writes && path_inside(AT_FDCWD, path) && fault("open"))
        return NULL;
    errno = kept;
    return real(path, mode);
}
FILE *fopen(const char *path, const char *mode) { return open_stream("fopen", path, mode); }
FILE *fopen64(const char *path, const char *mode) { return open_stream("fopen64", path, mode); }

int fclose(FILE *stream) {
    static int (*real)(FILE *);
    int file = fileno(stream), kept = errno;
    int failed = file >= 0 && written(file) && fault("close"), why = errno;
    if (!real)
        real = dlsym(RTLD_NEXT, "fclose");
    errno = kept;
    if (real(stream))
        return EOF;
    if (failed)
        errno = why;
    return failed ? EOF : 0;
}
