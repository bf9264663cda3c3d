/* Watches the calls that change files below one directory, and lets the n-th of them go wrong, or writes all of them down.

   Loaded with LD_PRELOAD. A process sets it up through its environment, or by the functions at the end (see library.py):

     FAULTS_DIR   the directory, an absolute path without symbolic links; nothing outside it is watched
     FAULTS_AT    number of the call that goes wrong, from 1 on, counted over all threads of the process
     FAULTS_KIND  what happens then, a number of `enum kind`
     FAULTS_LOG   a file outside the directory to which every call is appended, as `struct record`
     FAULTS_DATA  1: with the bytes that were written, as power.py needs them

   Every call is made as a system call, so nothing here depends on the C library's own wrappers. A descriptor's path is
   asked of /proc, which follows renames and copies of descriptors. What is written through memory maps is not seen:
   LMDB does that to its lock file alone.
   Not thread-safe on purpose: the set-up. Everything else is: with a log, one call at a time.
   Compile with -D_GNU_SOURCE, and without _FORTIFY_SOURCE or _FILE_OFFSET_BITS: 64-bit Linux only. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* The numbers of both are library.py's too. */
enum kind { NONE, KILL_BEFORE, KILL_AFTER, KILL_HALF, EIO_ONCE, EIO_EVER, ENOSPC_ONCE, ENOSPC_EVER, SHORT, SHORT_ENOSPC };
enum op { MARK, OPEN, WRITE, TRUNCATE, ALLOCATE, SYNC, RENAME, UNLINK, RMDIR, MKDIR, LINK };

enum { SYNCED = 1, DIRECTORY = 2, CREATED = 4 };   /* flags of a record */

struct record {
    uint32_t number, op, flags, names[2];          /* lengths of the two paths */
    int32_t error;                                 /* errno, 0 if the call went well */
    uint64_t inode, folder, target, offset, length, data;   /* length: what was asked for; data: bytes that follow */
};

/* Shared with the processes that are forked from here, so that one can ask what became of a child that was killed. */
struct shared {
    atomic_uint calls;
    atomic_int fired;
    char what[PATH_MAX + 64];
};

static struct shared *shared;
static char folder[PATH_MAX];
static size_t folder_length;
static unsigned fault_at;
static enum kind fault_kind;
static int log_fd = -1, log_data;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static const char *const names[] = {"mark", "open", "write", "truncate", "allocate", "sync", "rename", "unlink", "rmdir", "mkdir",
                                    "link"};

/* One watched call, from its number to its record. */
struct call {
    struct record record;
    const char *path, *other;
    int half, kill_after, error;     /* what is to go wrong: half of a write, the end of the process, an errno */
};

static int below(const char *path) {
    return folder_length && !strncmp(path, folder, folder_length) && (path[folder_length] == 0 || path[folder_length] == '/');
}

/* Write the absolute path of `path` as seen from `dirfd`, or of `dirfd` itself where path is NULL; return if it is watched. */
static int watched(int dirfd, const char *path, char *out) {
    if (!folder_length)
        return 0;
    int kept = errno;
    size_t n = 0;
    if (path == NULL || path[0] != '/') {
        char link[64];
        if (dirfd == AT_FDCWD)
            snprintf(link, sizeof link, "/proc/self/cwd");
        else
            snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
        ssize_t found = syscall(SYS_readlinkat, AT_FDCWD, link, out, (size_t)PATH_MAX - 1);
        errno = kept;
        if (found < 0)
            return 0;
        n = found;
        if (path)
            out[n++] = '/';
    }
    if (path && n + strlen(path) >= PATH_MAX)
        return 0;
    strcpy(out + n, path ? path : "");
    if (!path)
        out[n] = 0;
    for (n = strlen(out); n > 1 && out[n - 1] == '/'; )
        out[--n] = 0;
    return below(out);
}

static void die(void) {
    syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
    for (;;)
        pause();
}

/* Count a call and decide what goes wrong with it; needs_space: a full disk would refuse it. */
static void begin(struct call *call, enum op op, int needs_space, const char *path, const char *other) {
    memset(call, 0, sizeof *call);
    if (log_fd >= 0)
        pthread_mutex_lock(&turn);
    unsigned number = atomic_fetch_add(&shared->calls, 1) + 1;
    call->record.number = number;
    call->record.op = op;
    call->path = path;
    call->other = other;
    if (!fault_at || number < fault_at)
        return;
    int once = number == fault_at, space = needs_space;
    switch (fault_kind) {
    case NONE: break;
    case KILL_BEFORE: case KILL_AFTER: call->kill_after = once; break;
    case KILL_HALF: call->half = call->kill_after = once && op == WRITE; break;
    case EIO_ONCE: call->error = once ? EIO : 0; break;
    case EIO_EVER: call->error = EIO; break;
    case ENOSPC_ONCE: call->error = once && (space || op == SYNC) ? ENOSPC : 0; break;
    case ENOSPC_EVER: call->error = space ? ENOSPC : 0; break;
    case SHORT: call->half = once && op == WRITE; break;
    case SHORT_ENOSPC:
        call->half = once && op == WRITE;
        call->error = !once && space ? ENOSPC : 0;
        break;
    }
    if ((call->error || call->half || call->kill_after) && !atomic_exchange(&shared->fired, 1))
        snprintf(shared->what, sizeof shared->what, "%u %s %s", number, names[op], path);
    if (once && fault_kind == KILL_BEFORE)
        die();
}

static void put(const void *bytes, size_t n) {
    for (const char *at = bytes; n; ) {
        ssize_t done = syscall(SYS_write, log_fd, at, n);
        if (done < 0)
            abort();
        at += done;
        n -= done;
    }
}

static uint64_t inode(int fd, const char *path, int *is_dir) {
    struct stat found;
    if (path ? fstatat(AT_FDCWD, path, &found, AT_SYMLINK_NOFOLLOW) : fstat(fd, &found))
        return 0;
    if (is_dir)
        *is_dir = S_ISDIR(found.st_mode);
    return found.st_ino;
}

static uint64_t parent(const char *path) {
    char above[PATH_MAX];
    strcpy(above, path);
    *strrchr(above, '/') = 0;
    return inode(-1, above, NULL);
}

/* Write the record of a call, data from `parts`; result: of the call, errno being set where it is negative. */
static void end(struct call *call, ssize_t result, const struct iovec *parts) {
    int kept = errno;
    if (log_fd >= 0) {
        struct record *record = &call->record;
        record->error = result < 0 ? errno : 0;
        record->names[0] = strlen(call->path);
        record->names[1] = call->other ? strlen(call->other) : 0;
        record->data = log_data && parts && result > 0 ? result : 0;
        put(record, sizeof *record);
        put(call->path, record->names[0]);
        if (call->other)
            put(call->other, record->names[1]);
        for (size_t left = record->data, n; left; left -= n, parts++) {
            n = parts->iov_len < left ? parts->iov_len : left;
            put(parts->iov_base, n);
        }
        pthread_mutex_unlock(&turn);
    }
    if (call->kill_after)
        die();
    errno = kept;
}

static int fail(struct call *call) {
    if (!call->error)
        return 0;
    errno = call->error;
    return 1;
}

/* writes */

static ssize_t writing(int fd, const struct iovec *parts, int n_parts, off_t offset, int positioned) {
    char path[PATH_MAX];
    struct call call;
    if (!watched(fd, NULL, path))
        return positioned ? syscall(SYS_pwritev, fd, parts, n_parts, offset, 0) : syscall(SYS_writev, fd, parts, n_parts);
    begin(&call, WRITE, 1, path, NULL);
    size_t length = 0, half;
    for (int i = 0; i < n_parts; i++)
        length += parts[i].iov_len;
    struct iovec some[n_parts ? n_parts : 1];
    int n_some = 0;
    half = call.half ? (length + 1) / 2 : length;
    for (size_t left = half; left; left -= some[n_some++].iov_len) {
        some[n_some] = parts[n_some];
        if (some[n_some].iov_len > left)
            some[n_some].iov_len = left;
    }
    ssize_t result = fail(&call) ? -1 : positioned ? syscall(SYS_pwritev, fd, some, n_some, offset, 0)
                                                   : syscall(SYS_writev, fd, some, n_some);
    if (log_fd >= 0) {
        int kept = errno;
        call.record.inode = inode(fd, NULL, NULL);
        call.record.length = length;
        call.record.offset = positioned ? offset : syscall(SYS_lseek, fd, 0, SEEK_CUR) - (result > 0 ? result : 0);
        call.record.flags = syscall(SYS_fcntl, fd, F_GETFL) & O_DSYNC ? SYNCED : 0;     /* O_SYNC includes this bit */
        errno = kept;
    }
    end(&call, result, some);
    return result;
}

ssize_t write(int fd, const void *data, size_t n) {
    return writing(fd, &(struct iovec){(void *)data, n}, 1, 0, 0);
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t offset) {
    return writing(fd, &(struct iovec){(void *)data, n}, 1, offset, 1);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off_t offset) {
    return pwrite(fd, data, n, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
    return writing(fd, parts, n, 0, 0);
}

ssize_t pwritev(int fd, const struct iovec *parts, int n, off_t offset) {
    return writing(fd, parts, n, offset, 1);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int n, off_t offset) {
    return writing(fd, parts, n, offset, 1);
}

ssize_t pwritev2(int fd, const struct iovec *parts, int n, off_t offset, int flags) {
    (void)flags;
    return offset == -1 ? writing(fd, parts, n, 0, 0) : writing(fd, parts, n, offset, 1);
}

ssize_t pwritev64v2(int fd, const struct iovec *parts, int n, off_t offset, int flags) {
    return pwritev2(fd, parts, n, offset, flags);
}

/* Copies within the kernel would not be seen: callers are told that it cannot do them, and write themselves. */

ssize_t sendfile(int out, int in, off_t *offset, size_t n) {
    char path[PATH_MAX];
    if (watched(out, NULL, path)) {
        errno = ENOTSOCK;
        return -1;
    }
    return syscall(SYS_sendfile, out, in, offset, n);
}

ssize_t sendfile64(int out, int in, off_t *offset, size_t n) {
    return sendfile(out, in, offset, n);
}

ssize_t copy_file_range(int in, off_t *from, int out, off_t *to, size_t n, unsigned flags) {
    char path[PATH_MAX];
    if (watched(out, NULL, path)) {
        errno = EXDEV;
        return -1;
    }
    return syscall(SYS_copy_file_range, in, from, out, to, n, flags);
}

/* lengths; `call_it` is the system call, `by_name` says if it is given a name, `about` completes the record */

#define ON_FILE(op_, space, fd, path_, by_name, call_it, about)                                                                  \
    do {                                                                                                                         \
        char path[PATH_MAX];                                                                                                     \
        struct call call;                                                                                                        \
        if (!watched(fd, path_, path))                                                                                           \
            return call_it;                                                                                                      \
        begin(&call, op_, space, path, NULL);                                                                                    \
        int is_dir = 0;                                                                                                          \
        if (log_fd >= 0) {                                                                                                       \
            call.record.inode = inode(fd, by_name ? path : NULL, &is_dir);                                                       \
            call.record.flags = is_dir ? DIRECTORY : 0;                                                                          \
            about;                                                                                                               \
        }                                                                                                                        \
        int result = fail(&call) ? -1 : call_it;                                                                                 \
        end(&call, result, NULL);                                                                                                \
        return result;                                                                                                           \
    } while (0)

static int grows(int fd, const char *path, off_t length) {
    struct stat found;
    int kept = errno, failed = path ? stat(path, &found) : fstat(fd, &found);
    errno = kept;
    return !failed && length > found.st_size;
}

int ftruncate(int fd, off_t length) {
    ON_FILE(TRUNCATE, grows(fd, NULL, length), fd, NULL, 0, syscall(SYS_ftruncate, fd, length), call.record.length = length);
}

int ftruncate64(int fd, off_t length) {
    return ftruncate(fd, length);
}

int truncate(const char *name, off_t length) {
    ON_FILE(TRUNCATE, grows(-1, name, length), AT_FDCWD, name, 1, syscall(SYS_truncate, name, length),
            call.record.length = length);
}

int truncate64(const char *name, off_t length) {
    return truncate(name, length);
}

int fallocate(int fd, int mode, off_t offset, off_t length) {
    ON_FILE(ALLOCATE, 1, fd, NULL, 0, syscall(SYS_fallocate, fd, mode, offset, length),
            (call.record.offset = offset, call.record.length = length));
}

int fallocate64(int fd, int mode, off_t offset, off_t length) {
    return fallocate(fd, mode, offset, length);
}

int posix_fallocate(int fd, off_t offset, off_t length) {
    int kept = errno, result = fallocate(fd, 0, offset, length) ? errno : 0;
    errno = kept;
    return result;
}

int posix_fallocate64(int fd, off_t offset, off_t length) {
    return posix_fallocate(fd, offset, length);
}

/* syncs */

int fsync(int fd) {
    ON_FILE(SYNC, 0, fd, NULL, 0, syscall(SYS_fsync, fd), (void)0);
}

int fdatasync(int fd) {
    ON_FILE(SYNC, 0, fd, NULL, 0, syscall(SYS_fdatasync, fd), (void)0);
}

/* Promises nothing about lengths and the disk's cache: counted, but to power.py no sync (its inode is 0). */
int sync_file_range(int fd, off_t offset, off_t length, unsigned flags) {
    ON_FILE(SYNC, 0, fd, NULL, 0, syscall(SYS_sync_file_range, fd, offset, length, flags), call.record.inode = 0);
}

/* What is mapped has no descriptor: any msync counts, and is no sync to power.py. */
int msync(void *at, size_t length, int flags) {
    struct call call;
    if (!folder_length)
        return syscall(SYS_msync, at, length, flags);
    begin(&call, SYNC, 0, "(memory map)", NULL);
    int result = fail(&call) ? -1 : syscall(SYS_msync, at, length, flags);
    end(&call, result, NULL);
    return result;
}

/* opens */

static int opening(int dirfd, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    struct call call;
    struct stat found;
    if (!watched(dirfd, name, path))
        return syscall(SYS_openat, dirfd, name, flags, mode);
    int kept = errno, nameless = (flags & O_TMPFILE) == O_TMPFILE;
    int missing = nameless || (flags & O_CREAT && fstatat(dirfd, name, &found, AT_SYMLINK_NOFOLLOW));
    errno = kept;
    begin(&call, OPEN, missing, path, NULL);
    int result = fail(&call) ? -1 : syscall(SYS_openat, dirfd, name, flags, mode);
    if (log_fd >= 0 && result >= 0) {
        int is_dir = 0;
        call.record.inode = inode(result, NULL, &is_dir);
        call.record.folder = nameless ? 0 : parent(path);
        call.record.flags = (missing ? CREATED : 0) | (is_dir ? DIRECTORY : 0);
        call.record.length = flags & O_TRUNC ? 0 : UINT64_MAX;       /* the new length, if it has one */
    }
    end(&call, result, NULL);
    return result;
}

#define OPEN_MODE(flags)                                                                                                         \
    mode_t mode = 0;                                                                                                             \
    if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) {                                                               \
        va_list more;                                                                                                            \
        va_start(more, flags);                                                                                                   \
        mode = va_arg(more, mode_t);                                                                                             \
        va_end(more);                                                                                                            \
    }

int open(const char *name, int flags, ...) {
    OPEN_MODE(flags)
    return opening(AT_FDCWD, name, flags, mode);
}

int open64(const char *name, int flags, ...) {
    OPEN_MODE(flags)
    return opening(AT_FDCWD, name, flags, mode);
}

int openat(int dirfd, const char *name, int flags, ...) {
    OPEN_MODE(flags)
    return opening(dirfd, name, flags, mode);
}

int openat64(int dirfd, const char *name, int flags, ...) {
    OPEN_MODE(flags)
    return opening(dirfd, name, flags, mode);
}

/* What open() becomes in programs that were compiled with _FORTIFY_SOURCE. */

int __open_2(const char *name, int flags) {
    return opening(AT_FDCWD, name, flags, 0);
}

int __open64_2(const char *name, int flags) {
    return opening(AT_FDCWD, name, flags, 0);
}

int __openat_2(int dirfd, const char *name, int flags) {
    return opening(dirfd, name, flags, 0);
}

int __openat64_2(int dirfd, const char *name, int flags) {
    return opening(dirfd, name, flags, 0);
}

int creat(const char *name, mode_t mode) {
    return opening(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int creat64(const char *name, mode_t mode) {
    return creat(name, mode);
}

/* names */

int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags) {
    char path[PATH_MAX], other[PATH_MAX];
    struct call call;
    int here = watched(from_fd, from, path), there = watched(to_fd, to, other);
    if (!here && !there)
        return syscall(SYS_renameat2, from_fd, from, to_fd, to, flags);
    begin(&call, RENAME, 1, path, other);
    if (log_fd >= 0) {
        int is_dir = 0;
        call.record.inode = inode(-1, path, &is_dir);
        call.record.flags = is_dir ? DIRECTORY : 0;
        call.record.folder = parent(path);
        call.record.target = parent(other);
    }
    int result = fail(&call) ? -1 : syscall(SYS_renameat2, from_fd, from, to_fd, to, flags);
    end(&call, result, NULL);
    return result;
}

int renameat(int from_fd, const char *from, int to_fd, const char *to) {
    return renameat2(from_fd, from, to_fd, to, 0);
}

int rename(const char *from, const char *to) {
    return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags) {
    char path[PATH_MAX], other[PATH_MAX];
    struct call call;
    watched(from_fd, from, path);
    if (!watched(to_fd, to, other))
        return syscall(SYS_linkat, from_fd, from, to_fd, to, flags);
    begin(&call, LINK, 1, path, other);
    if (log_fd >= 0) {
        struct stat found;
        call.record.inode = fstatat(from_fd, from, &found, flags & AT_SYMLINK_FOLLOW ? 0 : AT_SYMLINK_NOFOLLOW) ? 0 : found.st_ino;
        call.record.target = parent(other);
    }
    int result = fail(&call) ? -1 : syscall(SYS_linkat, from_fd, from, to_fd, to, flags);
    end(&call, result, NULL);
    return result;
}

int link(const char *from, const char *to) {
    return linkat(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int unlinkat(int dirfd, const char *name, int flags) {
    ON_FILE(flags & AT_REMOVEDIR ? RMDIR : UNLINK, 0, dirfd, name, 1, syscall(SYS_unlinkat, dirfd, name, flags),
            call.record.folder = parent(path));
}

int unlink(const char *name) {
    return unlinkat(AT_FDCWD, name, 0);
}

int rmdir(const char *name) {
    return unlinkat(AT_FDCWD, name, AT_REMOVEDIR);
}

int mkdirat(int dirfd, const char *name, mode_t mode) {
    char path[PATH_MAX];
    struct call call;
    if (!watched(dirfd, name, path))
        return syscall(SYS_mkdirat, dirfd, name, mode);
    begin(&call, MKDIR, 1, path, NULL);
    int result = fail(&call) ? -1 : syscall(SYS_mkdirat, dirfd, name, mode);
    if (log_fd >= 0) {
        int kept = errno;
        call.record.inode = inode(-1, path, NULL);
        call.record.folder = parent(path);
        call.record.flags = DIRECTORY;
        errno = kept;
    }
    end(&call, result, NULL);
    return result;
}

int mkdir(const char *name, mode_t mode) {
    return mkdirat(AT_FDCWD, name, mode);
}

/* A disk that is full for ever has no room either when it is asked: short writes are told from failures by that. */

static int full(void) {
    return fault_at && (fault_kind == ENOSPC_EVER || fault_kind == SHORT_ENOSPC) && atomic_load(&shared->calls) >= fault_at;
}

int statvfs(const char *name, struct statvfs *out) {
    static int (*real)(const char *, struct statvfs *);
    char path[PATH_MAX];
    if (!real)
        real = (int (*)(const char *, struct statvfs *))dlsym(RTLD_NEXT, "statvfs");
    int result = real(name, out);
    if (!result && full() && watched(AT_FDCWD, name, path))
        out->f_bfree = out->f_bavail = 0;
    return result;
}

int statvfs64(const char *name, struct statvfs64 *out) {
    return statvfs(name, (struct statvfs *)out);       /* the same on 64 bits */
}

int fstatvfs(int fd, struct statvfs *out) {
    static int (*real)(int, struct statvfs *);
    char path[PATH_MAX];
    if (!real)
        real = (int (*)(int, struct statvfs *))dlsym(RTLD_NEXT, "fstatvfs");
    int result = real(fd, out);
    if (!result && full() && watched(fd, NULL, path))
        out->f_bfree = out->f_bavail = 0;
    return result;
}

int fstatvfs64(int fd, struct statvfs64 *out) {
    return fstatvfs(fd, (struct statvfs *)out);
}

/* Set-up: watch `dir` from now on (NULL or "": nothing) and count from 1; a `log` as FAULTS_LOG, or NULL. */

void faults_arm(const char *dir, unsigned at, int kind, const char *log, int data) {
    snprintf(folder, sizeof folder, "%s", dir ? dir : "");
    folder_length = strlen(folder);
    fault_at = at;
    fault_kind = (enum kind)kind;
    atomic_store(&shared->calls, 0);
    atomic_store(&shared->fired, 0);
    shared->what[0] = 0;
    if (log_fd >= 0)
        syscall(SYS_close, log_fd);
    log_fd = -1;
    log_data = data;
    if (log) {
        int fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        log_fd = syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 400);      /* out of the way of the program's own numbers */
        if (log_fd < 0)
            abort();
        syscall(SYS_close, fd);
    }
}

unsigned faults_calls(void) {
    return atomic_load(&shared->calls);
}

const char *faults_fired(void) {
    return shared->what;
}

void faults_mark(const char *text) {
    struct call call;
    if (log_fd < 0)
        return;
    memset(&call, 0, sizeof call);
    call.path = text;
    pthread_mutex_lock(&turn);
    end(&call, 0, NULL);
}

__attribute__((constructor)) static void set_up(void) {
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        abort();
    const char *dir = getenv("FAULTS_DIR"), *at = getenv("FAULTS_AT"), *kind = getenv("FAULTS_KIND");
    const char *data = getenv("FAULTS_DATA");
    if (dir)
        faults_arm(dir, at ? strtoul(at, NULL, 10) : 0, kind ? atoi(kind) : NONE, getenv("FAULTS_LOG"), data && atoi(data));
}
