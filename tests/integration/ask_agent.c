/* Asks the agent of SSH keys behind $SSH_AUTH_SOCK for its list, and prints the answer. */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(void) {
    const char *path = getenv("SSH_AUTH_SOCK");
    struct sockaddr_un place = {.sun_family = AF_UNIX};
    char answer[4096];
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (!path || strlen(path) >= sizeof place.sun_path) return 1;
    strcpy(place.sun_path, path);
    if (connect(fd, (struct sockaddr *)&place, sizeof place)) return 2;
    if (write(fd, "\0\0\0\1\13", 5) != 5) return 3;
    ssize_t size = read(fd, answer, sizeof answer);
    return size <= 0 || write(1, answer, (size_t)size) != size;
}
