/*
 * Either end of a port under measurement: the same program in the guest (on a port's character device) and on the host
 * (on the back end's unix socket).
 *
 *     peer ENDPOINT
 *
 * Takes one command per line on standard input and answers each with one line.  The guest's end is told first and
 * answers "ready"; then the host's end starts the clock.  Starting and ending go through the port itself, so that
 * nothing but the port is at work between the two readings of the clock:
 *
 *     guest                       host
 *     send BLOCK BYTES            collect BLOCK BYTES    guest to host: a byte "g" to the guest starts it
 *     take BLOCK BYTES            feed BLOCK BYTES       host to guest: a byte "d" from the guest ends it
 *     verify BLOCK BYTES          feed BLOCK BYTES       the same
 *     echo BLOCK COUNT            ping BLOCK COUNT       round trips
 *     shout BLOCK 0               duplex BLOCK MS        both ways at once for so long; the host's leaving ends it
 *
 * The stream is a table of noise whose length is a prime number, repeated, so the byte at an offset is known, and a
 * piece that is lost, doubled or misplaced does not fit.  The host checks every byte, and so does the guest in
 * "verify".  Under TCG that takes the guest longer than reading: in "take" it looks at both ends of each piece only.
 *
 * The host's answer: "ok SECONDS [p50 p99 worst, in microseconds | bytes received and sent]"; either: "bad TEXT".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PERIOD 262139 /* the largest prime below 2^18 */
#define LARGEST_BLOCK 262144
#define EDGE 8 /* bytes at each end of a piece that are always looked at */

enum check { EDGES, ALL };

static unsigned char pattern[PERIOD + LARGEST_BLOCK];
static unsigned char block[LARGEST_BLOCK];
static int port;

static void make_pattern(void)
{
    uint64_t state = 0x9e3779b97f4a7c15u;
    for (size_t i = 0; i < PERIOD; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        pattern[i] = (unsigned char)(state >> 32);
    }
    for (size_t i = PERIOD; i < sizeof pattern; i++)
        pattern[i] = pattern[i - PERIOD];
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void fail(const char *what, uint64_t offset)
{
    printf("bad %s at offset %llu: %s\n", what, (unsigned long long)offset, errno ? strerror(errno) : "end or mismatch");
    fflush(stdout);
    exit(1);
}

static void write_all(const unsigned char *data, size_t length, uint64_t offset)
{
    while (length) {
        errno = 0;
        ssize_t taken = write(port, data, length);
        if (taken <= 0)
            fail("write", offset);
        data += taken;
        length -= (size_t)taken;
        offset += (uint64_t)taken;
    }
}

static int fits(size_t length, const unsigned char *expected, enum check check)
{
    if (check == ALL || length <= 2 * EDGE)
        return !memcmp(block, expected, length);
    size_t last = length - EDGE;
    return !memcmp(block, expected, EDGE) && !memcmp(block + last, expected + last, EDGE);
}

/* Some bytes, at most length; they must be those the pattern has at that offset. */
static size_t read_checked(size_t length, uint64_t offset, enum check check)
{
    errno = 0;
    ssize_t given = read(port, block, length);
    if (given <= 0)
        fail("read", offset);
    if (!fits((size_t)given, pattern + offset % PERIOD, check))
        fail("check", offset);
    return (size_t)given;
}

static void write_pattern(size_t size, uint64_t bytes)
{
    for (uint64_t offset = 0; offset < bytes; offset += size) {
        size_t length = bytes - offset < size ? (size_t)(bytes - offset) : size;
        write_all(pattern + offset % PERIOD, length, offset);
    }
}

static void read_pattern(size_t size, uint64_t bytes, enum check check)
{
    for (uint64_t offset = 0; offset < bytes;) {
        size_t length = bytes - offset < size ? (size_t)(bytes - offset) : size;
        offset += read_checked(length, offset, check);
    }
}

static void send_mark(unsigned char mark)
{
    write_all(&mark, 1, 0);
}

static void wait_mark(unsigned char mark)
{
    errno = 0;
    if (read(port, block, 1) != 1 || block[0] != mark)
        fail("mark", 0);
}

static int compare(const void *left, const void *right)
{
    float a = *(const float *)left, b = *(const float *)right;
    return (a > b) - (a < b);
}

static void ping(size_t size, uint64_t count)
{
    float *trips = calloc(count, sizeof *trips);
    if (!trips)
        fail("memory", count);
    double started = now(), before = started;
    for (uint64_t trip = 0; trip < count; trip++) {
        size_t start = (size_t)(trip * 7 % PERIOD);
        write_all(pattern + start, size, trip);
        for (size_t given = 0; given < size;)
            given += read_checked(size - given, start + given, ALL);
        double after = now();
        trips[trip] = (float)((after - before) * 1e6);
        before = after;
    }
    qsort(trips, count, sizeof *trips, compare);
    printf("ok %.6f %.1f %.1f %.1f\n", before - started, (double)trips[count / 2], (double)trips[count * 99 / 100],
           (double)trips[count - 1]);
    free(trips);
}

static void echo(size_t size, uint64_t count)
{
    for (uint64_t trip = 0; trip < count; trip++) {
        for (size_t given = 0; given < size;) {
            errno = 0;
            ssize_t part = read(port, block + given, size - given);
            if (part <= 0)
                fail("read", trip);
            given += (size_t)part;
        }
        write_all(block, size, trip);
    }
}

/* Both ways at once, as the port allows, until a time or, with none, until the host is gone. */
static void both_ways(size_t size, double until, uint64_t *received, uint64_t *sent)
{
    struct pollfd state = {.fd = port, .events = POLLIN | POLLOUT};
    fcntl(port, F_SETFL, fcntl(port, F_GETFL) | O_NONBLOCK);
    while (until < 0 || now() < until) {
        if (poll(&state, 1, 100) < 0)
            fail("poll", *sent);
        if (state.revents & POLLHUP && until < 0)
            return;
        if (state.revents & POLLIN) {
            errno = 0;
            ssize_t given = read(port, block, size);
            if (given > 0 && !fits((size_t)given, pattern + *received % PERIOD, EDGES))
                fail("check", *received);
            if (given <= 0 && errno != EAGAIN && until >= 0)
                fail("read", *received);
            *received += given > 0 ? (uint64_t)given : 0;
        }
        if (state.revents & POLLOUT) {
            ssize_t taken = write(port, pattern + *sent % PERIOD, size);
            if (taken < 0 && errno != EAGAIN && until >= 0)
                fail("write", *sent);
            *sent += taken > 0 ? (uint64_t)taken : 0;
        }
    }
}

static void say_ready(void)
{
    printf("ready\n");
    fflush(stdout);
}

static void obey(const char *command, size_t size, uint64_t amount)
{
    double started = now();
    if (!strcmp(command, "send")) {
        say_ready();
        wait_mark('g');
        write_pattern(size, amount);
    } else if (!strcmp(command, "take") || !strcmp(command, "verify")) {
        say_ready();
        read_pattern(size, amount, command[0] == 'v' ? ALL : EDGES);
        send_mark('d');
    } else if (!strcmp(command, "echo")) {
        say_ready();
        echo(size, amount);
    } else if (!strcmp(command, "collect")) {
        send_mark('g');
        read_pattern(size, amount, ALL);
        printf("ok %.6f\n", now() - started);
    } else if (!strcmp(command, "feed")) {
        write_pattern(size, amount);
        wait_mark('d');
        printf("ok %.6f\n", now() - started);
    } else if (!strcmp(command, "shout") || !strcmp(command, "duplex")) {
        uint64_t received = 0, sent = 0;
        if (*command == 's')
            say_ready();
        both_ways(size, *command == 's' ? -1 : started + (double)amount * 1e-3, &received, &sent);
        printf("ok %.6f %llu %llu\n", now() - started, (unsigned long long)received, (unsigned long long)sent);
    } else if (!strcmp(command, "ping")) {
        ping(size, amount);
    } else {
        printf("bad command %s\n", command);
    }
    fflush(stdout);
}

/* A port's device; a read from it is an end of file until the host is connected, which shows as POLLHUP. */
static int open_device(const char *path)
{
    struct pollfd state = {.fd = open(path, O_RDWR), .events = POLLIN};
    while (state.fd >= 0 && poll(&state, 1, 10) == 1 && state.revents & POLLHUP)
        usleep(10000);
    return state.fd;
}

static int open_endpoint(const char *path)
{
    struct stat kind;
    if (stat(path, &kind) || !S_ISSOCK(kind.st_mode))
        return open_device(path);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int connection = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connection >= 0 && connect(connection, (struct sockaddr *)&address, sizeof address)) {
        close(connection);
        return -1;
    }
    return connection;
}

int main(int count, char **arguments)
{
    char command[16];
    unsigned long long size, amount;
    if (count != 2 || (port = open_endpoint(arguments[1])) < 0) {
        printf("bad endpoint %s: %s\n", count == 2 ? arguments[1] : "(none)", strerror(errno));
        return 1;
    }
    make_pattern();
    printf("open\n");
    fflush(stdout);
    while (scanf("%15s %llu %llu", command, &size, &amount) == 3) {
        if (size < 1 || size > LARGEST_BLOCK) {
            printf("bad size %llu\n", size);
            return 1;
        }
        obey(command, (size_t)size, amount);
    }
    return 0;
}
