/* Passes a descriptor from one step to another that runs at the same time.

   give SOCKET KIND FILE   opens FILE and sends the descriptor
   take SOCKET KIND GO     receives it; once the file GO exists, tries to write "evil" through it

   KIND is how: "write" and "map" open for writing (and "map" keeps a shared mapping only), "dir"
   sends FILE's directory, "path" a descriptor that can't write but be opened anew. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void fail(const char *what) {
    perror(what);
    exit(2);
}

static struct sockaddr_un address(const char *path) {
    struct sockaddr_un found = {.sun_family = AF_UNIX};
    strncpy(found.sun_path, path, sizeof found.sun_path - 1);
    return found;
}

union control {
    struct cmsghdr header;
    char room[CMSG_SPACE(sizeof(int))];
};

static int give(const char *path, const char *kind, char *file) {
    struct sockaddr_un at = address(path);
    char byte = 'x';
    struct iovec data = {&byte, 1};
    union control control = {.header = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    int other = socket(AF_UNIX, SOCK_STREAM, 0), fd, tries = 0;
    if (!strcmp(kind, "dir"))
        fd = open(dirname(strdup(file)), O_RDONLY | O_DIRECTORY);
    else
        fd = open(file, strcmp(kind, "path") ? O_RDWR : O_PATH);
    if (fd < 0)
        fail(file);
    while (connect(other, (struct sockaddr *)&at, sizeof at)) {
        if (++tries > 1000)
            fail("connect");
        usleep(10000);
    }
    memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
    if (sendmsg(other, &message, 0) != 1 || read(other, &byte, 1) != 1)
        fail("send");
    return 0;
}

static int take(const char *path, const char *kind, const char *go) {
    struct sockaddr_un at = address(path);
    char byte, *map = NULL;
    struct iovec data = {&byte, 1};
    union control control;
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    int ours = socket(AF_UNIX, SOCK_STREAM, 0), other, fd;
    if (bind(ours, (struct sockaddr *)&at, sizeof at) || listen(ours, 1))
        fail("listen");
    if ((other = accept(ours, NULL, NULL)) < 0 || recvmsg(other, &message, 0) != 1)
        fail("receive");
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    if (!strcmp(kind, "map")) {
        map = mmap(NULL, 4, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (map == MAP_FAILED)
            fail("map");
        close(fd);
    }
    if (write(other, &byte, 1) != 1)
        fail("answer");
    while (access(go, F_OK))
        usleep(10000);
    if (map) {
        memcpy(map, "evil", 4);
        msync(map, 4, MS_SYNC);
        puts("written");
        return 0;
    }
    if (!strcmp(kind, "dir"))
        fd = openat(fd, "file", O_WRONLY);
    if (!strcmp(kind, "path")) {
        char name[64];
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        fd = open(name, O_WRONLY);
    }
    if (fd < 0 || pwrite(fd, "evil", 4, 0) != 4)
        printf("refused: %s\n", strerror(errno));
    else
        puts("written");
    return 0;
}

int main(int count, char **words) {
    if (count != 5)
        return 64;
    return strcmp(words[1], "give") ? take(words[2], words[3], words[4])
                                    : give(words[2], words[3], words[4]);
}
