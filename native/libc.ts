import koffi from 'koffi';

// Every libc prototype of the project, once. The names, argument orders and return values are those of
// the manual pages (section 2 and 3). koffi has no ssize_t: it is `int64_t` on every platform we run on.
// Calls return -1 and set errno; `call` in errors.ts turns that into a KernelError.
const libc = koffi.load('libc.so.6');

koffi.struct('iovec', { iov_base: 'void *', iov_len: 'size_t' });

koffi.struct('msghdr', {
  msg_name: 'void *',
  msg_namelen: 'uint32_t',
  msg_iov: 'iovec *',
  msg_iovlen: 'size_t',
  msg_control: 'void *',
  msg_controllen: 'size_t',
  msg_flags: 'int',
});

export const socket = libc.func('int socket(int domain, int type, int protocol)');
export const bind = libc.func('int bind(int fd, const void *address, uint32_t length)');
export const connect = libc.func('int connect(int fd, const void *address, uint32_t length)');
export const listen = libc.func('int listen(int fd, int backlog)');
export const accept4 = libc.func('int accept4(int fd, void *address, void *length, int flags)');
export const getsockname = libc.func(
  'int getsockname(int fd, _Out_ void *address, _Inout_ uint32_t *length)',
);
export const getsockopt = libc.func(
  'int getsockopt(int fd, int level, int name, _Out_ void *value, _Inout_ uint32_t *length)',
);
export const setsockopt = libc.func(
  'int setsockopt(int fd, int level, int name, const void *value, uint32_t length)',
);
export const send = libc.func('int64_t send(int fd, const void *bytes, size_t length, int flags)');
export const recv = libc.func('int64_t recv(int fd, _Out_ void *bytes, size_t length, int flags)');
export const sendmsg = libc.func('int64_t sendmsg(int fd, const msghdr *message, int flags)');
export const recvmsg = libc.func('int64_t recvmsg(int fd, _Inout_ msghdr *message, int flags)');

export const shutdown = libc.func('int shutdown(int fd, int how)');
export const socketpair = libc.func(
  'int socketpair(int domain, int type, int protocol, _Out_ int *fds)',
);

export const open = libc.func('int open(const char *path, int flags, uint32_t mode)');
/** openat2(2), for which glibc has no name. Variadic in C; all arguments are passed in integer registers anyway. */
export const openat2 = libc.func('syscall', 'int64_t', [
  'int64_t',
  'int64_t',
  'const char *',
  'const void *',
  'size_t',
]);
export const statx = libc.func(
  'int statx(int folder, const char *path, int flags, uint32_t mask, _Out_ void *result)',
);
export const mknod = libc.func('int mknod(const char *path, uint32_t mode, uint64_t device)');
export const close = libc.func('int close(int fd)');
export const dup = libc.func('int dup(int fd)');
export const fcntl = libc.func('int fcntl(int fd, int command, int64_t argument)');
export const flock = libc.func('int flock(int fd, int operation)');
export const ioctl = libc.func('int ioctl(int fd, uint64_t request, _Inout_ void *argument)');
/** ioctl whose argument is a number, not a pointer: TUNSETPERSIST and its like. */
export const ioctlValue = libc.func('ioctl', 'int', ['int', 'uint64_t', 'int64_t']);

export const setns = libc.func('int setns(int fd, int nstype)');
export const unshare = libc.func('int unshare(int flags)');
export const mount = libc.func(
  'int mount(const char *source, const char *target, const char *type, uint64_t flags, const char *options)',
);
export const umount2 = libc.func('int umount2(const char *target, int flags)');
export const execvp = libc.func('int execvp(const char *file, const char **argv)');
export const signal = libc.func('void *signal(int signum, void *handler)');
export const sigprocmask = libc.func('int sigprocmask(int how, const void *set, void *old)');
export const strerror = libc.func('const char *strerror(int errnum)');

/** The calling thread's errno after a call that failed. */
export const errno = (): number => koffi.errno();
