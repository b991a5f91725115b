/* An init that takes a second before it asks the kernel to end with its parent. */

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int count, char **words) {
    if (count < 5)
        return 0; /* the runtime is tried */
    sleep(1);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (fork() == 0) {
        execvp(words[4], words + 4);
        _exit(127);
    }
    while (wait(NULL) > 0)
        ;
    return 0;
}
