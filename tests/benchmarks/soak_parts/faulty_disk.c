/* Has what is written below a folder fail with EIO while a file is there: LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int is_faulty(void) {
    const char *flag = getenv("FAULT_FLAG");
    return flag && access(flag, F_OK) == 0;
}

static int is_below(const char *path) {
    const char *folder = getenv("FAULT_BELOW");
    return folder && strncmp(path, folder, strlen(folder)) == 0;
}

static int fails(int file) {
    char link[64], path[PATH_MAX + 1];
    int before = errno, found = 0;
    if (is_faulty()) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", file);
        ssize_t length = readlink(link, path, PATH_MAX);
        if (length > 0) {
            path[length] = 0;
            found = is_below(path);
        }
    }
    errno = found ? EIO : before;
    return found;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int file, const void *bytes, size_t count) {
    return fails(file) ? -1 : REAL(write)(file, bytes, count);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    return fails(file) ? -1 : REAL(writev)(file, parts, count);
}

int fsync(int file) {
    return fails(file) ? -1 : REAL(fsync)(file);
}

int rename(const char *from, const char *to) {
    if (is_faulty() && is_below(to)) {
        errno = EIO;
        return -1;
    }
    return REAL(rename)(from, to);
}
