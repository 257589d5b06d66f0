/* A disk whose power can be cut: what was not synced by then is lost. For tests, by LD_PRELOAD.

   The program's files are as always, which is what the kernel holds in memory. What a disk would hold of them lies
   in a directory of its own, and gets what has changed when the program syncs. Tests put it in the files' place.

   POWER_CUT_FILES  how the paths of these files begin
   POWER_CUT_DISK   the directory with what is on the disk, under the same names
   POWER_CUT_AT     the power is cut (SIGKILL) in front of the program's n-th write, sync, or change of a name or size
   POWER_CUT_EARLY  how likely it is at each write that some sectors, of anything that is not synced, get to the disk
   POWER_CUT_SEED   of this choice
   POWER_CUT_LIES   the disk confirms each sync and does nothing

   Names and sizes are as on file systems with a journal: the name of a new file gets to the disk with its content,
   and that one is gone or has been renamed with the next sync of anything, or before some sector that comes early. So
   a log that SQLite has removed can be back, but is never mixed with the next one of that name.

   Here is what SQLite calls, as nm -D and strace show it, and what pathlib does with names. A write or sync that is
   made in another way gets nothing to the disk, so tests would see a loss. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SECTOR 512
#define LENGTH(array) (sizeof(array) / sizeof *(array))
#define LOCKED __attribute__((cleanup(unlock), unused)) int locked = pthread_mutex_lock(&mutex)

struct range { off_t begin, end; };
struct file { char path[PATH_MAX]; struct range *changed; size_t count, room; off_t cut_to; };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct file files[16];
static struct { char from[PATH_MAX], to[PATH_MAX]; } names[16]; /* not yet on the disk; to: "" if removed */
static size_t name_count;
static const char *prefix, *disk;
static long cut_at, calls;
static double early;
static int lies;
static unsigned short dice[3];

static void unlock(int *locked) { (void)locked; pthread_mutex_unlock(&mutex); }

static void check(int holds, const char *what) {
    if (!holds) { fprintf(stderr, "power_cut: %s: %s\n", what, strerror(errno)); abort(); }
}

__attribute__((constructor)) static void begin(void) {
    const char *value;
    prefix = getenv("POWER_CUT_FILES");
    disk = getenv("POWER_CUT_DISK");
    check(prefix && disk, "POWER_CUT_FILES and POWER_CUT_DISK are needed");
    cut_at = (value = getenv("POWER_CUT_AT")) ? atol(value) : 0;
    early = (value = getenv("POWER_CUT_EARLY")) ? atof(value) : 0;
    dice[0] = (value = getenv("POWER_CUT_SEED")) ? atoi(value) : 0;
    lies = (value = getenv("POWER_CUT_LIES")) && atoi(value);
}

static int ends_with(const char *text, const char *end) {
    size_t length = strlen(text), end_length = strlen(end);
    return length >= end_length && !strcmp(text + length - end_length, end);
}

/* SQLite maps its -shm into memory, and makes it anew after a crash; nothing is written to the -lock. */
static int is_watched(const char *path) {
    return prefix && !strncmp(path, prefix, strlen(prefix)) && !ends_with(path, "-shm") && !ends_with(path, "-lock") &&
           !ends_with(path, " (deleted)");
}

static struct file *file_at(const char *path) {
    struct file *unused = NULL;
    for (size_t i = 0; i < LENGTH(files); i++) {
        if (!strcmp(files[i].path, path)) return &files[i];
        if (!*files[i].path) unused = &files[i];
    }
    check(unused != NULL, "too many files");
    strcpy(unused->path, path);
    unused->count = 0;
    unused->cut_to = LONG_MAX;
    return unused;
}

/* The kernel knows the name of what is open, so open() and close() need not be watched. */
static struct file *file_of(int fd) {
    char link[32], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return NULL;
    path[length] = 0;
    return is_watched(path) ? file_at(path) : NULL;
}

static int chance(double probability) { return erand48(dice) < probability; }

static void before_a_change(void) {
    if (++calls == cut_at) kill(getpid(), SIGKILL);
}

static const char *on_disk(const char *path, char *buffer) {
    check(snprintf(buffer, PATH_MAX, "%s%s", disk, strrchr(path, '/')) < PATH_MAX, path);
    return buffer;
}

static void write_names(void) {
    char from[PATH_MAX], to[PATH_MAX];
    for (size_t i = 0; i < name_count; i++) {
        on_disk(names[i].from, from);
        if (*names[i].to) {
            if (!syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, on_disk(names[i].to, to))) continue;
            strcpy(from, to); /* nothing of the new file has got there, and the old one is gone */
        }
        syscall(SYS_unlinkat, AT_FDCWD, from, 0);
    }
    name_count = 0;
}

static int open_on_disk(const struct file *file) {
    char path[PATH_MAX];
    int there = open(on_disk(file->path, path), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    check(there >= 0, path);
    return there;
}

static off_t size_of(int fd) {
    struct stat found;
    check(!fstat(fd, &found), "fstat");
    return found.st_size;
}

static void write_size(int there, off_t size) { check(!syscall(SYS_ftruncate, there, size), "ftruncate"); }

static void write_cut(struct file *file, int there) {
    if (file->cut_to < size_of(there)) write_size(there, file->cut_to);
    file->cut_to = LONG_MAX;
}

static void write_content(int fd, int there, struct range range) {
    char buffer[65536];
    while (range.begin < range.end) {
        size_t left = range.end - range.begin;
        ssize_t count = pread(fd, buffer, left < sizeof buffer ? left : sizeof buffer, range.begin);
        check(count >= 0, "pread");
        if (!count) break; /* the file has been cut meanwhile */
        check(syscall(SYS_pwrite64, there, buffer, count, range.begin) == count, "pwrite");
        range.begin += count;
    }
}

/* What the kernel does at any time: some of what has changed, now, and torn as disks tear it. */
static void write_some_early(struct file *file, int fd) {
    if (!chance(early)) return;
    write_names();
    int there = open_on_disk(file), whole = chance(0.5);
    write_cut(file, there);
    if (file->count) {
        struct range range = file->changed[(size_t)(erand48(dice) * file->count)];
        for (off_t at = range.begin / SECTOR * SECTOR; at < range.end; at += SECTOR)
            if (whole || chance(0.5)) write_content(fd, there, (struct range){at, at + SECTOR});
    }
    syscall(SYS_close, there);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t begin) {
    LOCKED;
    struct file *file = file_of(fd);
    if (file) before_a_change();
    ssize_t count = syscall(SYS_pwrite64, fd, data, size, begin);
    if (!file || count <= 0) return count;
    if (file->count == file->room) {
        file->room = file->room * 2 + 64;
        file->changed = realloc(file->changed, file->room * sizeof *file->changed);
        check(file->changed != NULL, "realloc");
    }
    file->changed[file->count++] = (struct range){begin, begin + count};
    write_some_early(file, fd);
    return count;
}

int ftruncate64(int fd, off_t size) {
    LOCKED;
    struct file *file = file_of(fd);
    if (file) before_a_change();
    int result = syscall(SYS_ftruncate, fd, size);
    if (file && !result) {
        if (size < file->cut_to) file->cut_to = size;
        write_some_early(file, fd);
    }
    return result;
}

int fdatasync(int fd) {
    LOCKED;
    struct file *file = file_of(fd);
    if (file) before_a_change();
    if (lies) return 0;
    write_names();
    if (!file) return syscall(SYS_fdatasync, fd);
    int there = open_on_disk(file);
    write_cut(file, there);
    for (size_t i = 0; i < file->count; i++) write_content(fd, there, file->changed[i]);
    write_size(there, size_of(fd));
    file->count = 0;
    syscall(SYS_close, there);
    return 0; /* the machine's own disk is spared */
}

static int named(int result, const char *from, const char *to) {
    if (result) return result;
    check(name_count < LENGTH(names), "too many names");
    strcpy(names[name_count].from, from);
    strcpy(names[name_count++].to, to);
    if (*to) *file_at(to)->path = 0;
    strcpy(file_at(from)->path, to);
    return result;
}

int unlink(const char *path) {
    LOCKED;
    if (!is_watched(path)) return syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    before_a_change();
    return named(syscall(SYS_unlinkat, AT_FDCWD, path, 0), path, "");
}

int rename(const char *from, const char *to) {
    LOCKED;
    if (!is_watched(from) || !is_watched(to)) return syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to);
    before_a_change();
    return named(syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to), from, to);
}

ssize_t pwrite(int, const void *, size_t, off_t) __attribute__((alias("pwrite64")));
int ftruncate(int, off_t) __attribute__((alias("ftruncate64")));
int fsync(int) __attribute__((alias("fdatasync")));
