/*
 * The floor: what the kernel itself takes for a TAP and for a veth pair. Sends the messages that the agent sends,
 * through raw netlink, and nothing else. No lease, no record, no event, no port filter.
 *
 *   floor BRIDGE GROUP GATEWAY
 *
 * reads orders, one a line, and answers each with a line "TOTAL STRETCH": microseconds for the whole order, and without
 * the opening of the workload's namespace, which the agent does while it waits for the lease.
 *
 *   tap NAME MAC
 *   veth NAME MAC NETNS ADDRESS      (the peer is eth0 in NETNS; a /16)
 *   delete NAME
 *
 * The first error ends it, with a message and code 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MTU = 1500, PREFIX = 16, ONE_QUEUE = 1 };

static int home_netns, kernel, bridge;
static unsigned group;
static struct in_addr gateway;

static void fail(const char *what, const char *subject) {
  fprintf(stderr, "floor: %s %s: %s\n", what, subject, strerror(errno));
  exit(1);
}

static int checked(int result, const char *what, const char *subject) {
  if (result < 0) fail(what, subject);
  return result;
}

static double now_us(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1e6 + time.tv_nsec / 1e3;
}

/* Requests, one after the other in one buffer, sent at once. */

static struct {
  char bytes[4096];
  size_t length, last;
  int count;
} batch;

static void *grow(size_t length) {
  void *place = batch.bytes + batch.length;
  memset(place, 0, NLMSG_ALIGN(length));
  batch.length += NLMSG_ALIGN(length);
  return place;
}

static struct nlmsghdr *last_message(void) { return (void *)(batch.bytes + batch.last); }

static void *begin(int type, int flags, size_t body) {
  batch.last = batch.length;
  struct nlmsghdr *header = grow(NLMSG_HDRLEN + body);
  header->nlmsg_type = type;
  header->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
  header->nlmsg_seq = ++batch.count;
  return NLMSG_DATA(header);
}

static void end(void) { last_message()->nlmsg_len = batch.length - batch.last; }

static struct rtattr *put(int type, const void *value, size_t length) {
  struct rtattr *attribute = grow(RTA_LENGTH(length));
  attribute->rta_type = type;
  attribute->rta_len = RTA_LENGTH(length);
  if (length > 0 && value != NULL) memcpy(RTA_DATA(attribute), value, length);
  return attribute;
}

static void put_u32(int type, unsigned value) { put(type, &value, sizeof value); }
static void put_text(int type, const char *text) { put(type, text, strlen(text) + 1); }
static struct rtattr *nest(int type) { return put(type, NULL, 0); }
static void unnest(struct rtattr *outer) {
  outer->rta_len = batch.bytes + batch.length - (char *)outer;
}

/* Sends the batch and reads the answer to each request; an echoed RTM_NEWLINK tells the index, and that of the peer. */
static void exchange(int netlink, const char *subject, int *index, int *peer) {
  checked(send(netlink, batch.bytes, batch.length, 0), "send", subject);
  int left = batch.count;
  batch.length = batch.count = 0;
  while (left > 0) {
    static char answer[32768];
    int length = checked(recv(netlink, answer, sizeof answer, 0), "recv", subject);
    for (struct nlmsghdr *one = (void *)answer; NLMSG_OK(one, length); one = NLMSG_NEXT(one, length)) {
      if (one->nlmsg_type == RTM_NEWLINK && index != NULL) {
        struct ifinfomsg *link = NLMSG_DATA(one);
        *index = link->ifi_index;
        int rest = IFLA_PAYLOAD(one);
        for (struct rtattr *at = IFLA_RTA(link); RTA_OK(at, rest); at = RTA_NEXT(at, rest))
          if (at->rta_type == IFLA_LINK) *peer = *(int *)RTA_DATA(at);
      }
      if (one->nlmsg_type != NLMSG_ERROR) continue;
      left -= 1;
      errno = -((struct nlmsgerr *)NLMSG_DATA(one))->error;
      if (errno != 0) fail("netlink", subject);
    }
  }
}

static int open_netlink(void) {
  int one = 1, fd = checked(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE), "socket", "netlink");
  setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof one);
  setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof one);
  setsockopt(fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK, &one, sizeof one);
  return fd;
}

static void set_ipv6(const char *device, const char *setting, const char *value) {
  char path[128];
  snprintf(path, sizeof path, "/proc/sys/net/ipv6/conf/%s/%s", device, setting);
  int fd = checked(open(path, O_RDWR | O_CLOEXEC), "open", path);
  checked(write(fd, value, strlen(value)), "write", path);
  close(fd);
}

static void begin_link(int type, int flags, int index, int up) {
  struct ifinfomsg *link = begin(type, flags, sizeof *link);
  link->ifi_index = index;
  link->ifi_flags = link->ifi_change = up ? IFF_UP : 0;
}

static void put_alias(const char *name) {
  char alias[64];
  snprintf(alias, sizeof alias, "floor:%s#1", name);
  put(IFLA_IFALIAS, alias, strlen(alias) + 1);
}

static void read_mac(const char *text, unsigned char mac[6]) {
  if (sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", mac, mac + 1, mac + 2, mac + 3, mac + 4, mac + 5) == 6) return;
  errno = EINVAL;
  fail("MAC", text);
}

/* The host's end is to differ from the workload's, and to be higher than the bridge's. */
static void host_end(unsigned char mac[6]) { mac[0] = 0xfe; }

static void make_tap(const char *name, const char *mac_text) {
  unsigned char mac[6];
  read_mac(mac_text, mac);
  host_end(mac);
  int tap = checked(open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK), "open", "/dev/net/tun");
  struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL};
  snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
  checked(ioctl(tap, TUNSETIFF, &request), "TUNSETIFF", name);
  checked(ioctl(tap, TUNSETOWNER, 0), "TUNSETOWNER", name);
  checked(ioctl(kernel, SIOCGIFINDEX, &request), "SIOCGIFINDEX", name);
  int index = request.ifr_ifindex;
  begin_link(RTM_SETLINK, 0, index, 0);
  put(IFLA_ADDRESS, mac, sizeof mac);
  put_u32(IFLA_MTU, MTU);
  put_u32(IFLA_MASTER, bridge);
  put_u32(IFLA_GROUP, group);
  put_alias(name);
  end();
  exchange(kernel, name, NULL, NULL);
  set_ipv6(name, "disable_ipv6", "1");
  begin_link(RTM_SETLINK, 0, index, 1);
  end();
  exchange(kernel, name, NULL, NULL);
  checked(ioctl(tap, TUNSETPERSIST, 1), "TUNSETPERSIST", name);
  close(tap);
}

static void make_pair(const char *name, const unsigned char mac[6], int netns, int *index, int *peer) {
  unsigned char outer[6];
  memcpy(outer, mac, sizeof outer);
  host_end(outer);
  begin_link(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO, 0, 0);
  put_text(IFLA_IFNAME, name);
  put(IFLA_ADDRESS, outer, sizeof outer);
  put_u32(IFLA_MTU, MTU);
  put_u32(IFLA_GROUP, group);
  put_u32(IFLA_NUM_TX_QUEUES, ONE_QUEUE);
  put_u32(IFLA_NUM_RX_QUEUES, ONE_QUEUE);
  put_u32(IFLA_MASTER, bridge);
  struct rtattr *info = nest(IFLA_LINKINFO);
  put_text(IFLA_INFO_KIND, "veth");
  struct rtattr *pair = nest(IFLA_INFO_DATA), *inner = nest(VETH_INFO_PEER);
  grow(sizeof(struct ifinfomsg));
  put_text(IFLA_IFNAME, "eth0");
  put(IFLA_ADDRESS, mac, 6);
  put_u32(IFLA_MTU, MTU);
  put_u32(IFLA_NUM_TX_QUEUES, ONE_QUEUE);
  put_u32(IFLA_NUM_RX_QUEUES, ONE_QUEUE);
  put_u32(IFLA_NET_NS_FD, netns);
  unnest(inner);
  unnest(pair);
  unnest(info);
  end();
  exchange(kernel, name, index, peer);
}

/* Whether the namespace has addresses: a container that has some is set up in another way. */
static void ask_for_addresses(int inside) {
  struct ifaddrmsg *any = begin(RTM_GETADDR, NLM_F_DUMP, sizeof *any);
  any->ifa_family = AF_INET;
  end();
  checked(send(inside, batch.bytes, batch.length, 0), "send", "addresses");
  batch.length = batch.count = 0;
  for (;;) {
    static char answer[32768];
    int length = checked(recv(inside, answer, sizeof answer, 0), "recv", "addresses");
    for (struct nlmsghdr *one = (void *)answer; NLMSG_OK(one, length); one = NLMSG_NEXT(one, length)) {
      if (one->nlmsg_type == NLMSG_DONE) return;
      if (one->nlmsg_type == NLMSG_ERROR) fail("dump", "addresses");
    }
  }
}

/* Address, loopback and interface up, default route: one message to the kernel. */
static void configure(int inside, int eth0, struct in_addr address) {
  struct ifaddrmsg *own = begin(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, sizeof *own);
  own->ifa_family = AF_INET;
  own->ifa_prefixlen = PREFIX;
  own->ifa_index = eth0;
  put(IFA_LOCAL, &address, sizeof address);
  put(IFA_ADDRESS, &address, sizeof address);
  end();
  begin_link(RTM_SETLINK, 0, 1, 1);
  end();
  begin_link(RTM_SETLINK, 0, eth0, 1);
  end();
  struct rtmsg *route = begin(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, sizeof *route);
  route->rtm_family = AF_INET;
  route->rtm_table = RT_TABLE_MAIN;
  route->rtm_protocol = RTPROT_STATIC;
  route->rtm_type = RTN_UNICAST;
  put(RTA_GATEWAY, &gateway, sizeof gateway);
  put_u32(RTA_OIF, eth0);
  end();
  exchange(inside, "eth0", NULL, NULL);
}

static double make_veth(const char *name, const char *mac_text, const char *path, const char *address_text) {
  unsigned char mac[6];
  read_mac(mac_text, mac);
  struct in_addr address;
  inet_pton(AF_INET, address_text, &address);
  int netns = checked(open(path, O_RDONLY | O_CLOEXEC), "open", path);
  checked(setns(netns, CLONE_NEWNET), "setns", path);
  int inside = open_netlink();
  checked(setns(home_netns, CLONE_NEWNET), "setns", "home");
  double opened = now_us();
  int index = 0, eth0 = 0;
  make_pair(name, mac, netns, &index, &eth0);
  set_ipv6(name, "disable_ipv6", "1");
  begin_link(RTM_SETLINK, 0, index, 1);
  put_alias(name);
  end();
  exchange(kernel, name, NULL, NULL);
  checked(setns(netns, CLONE_NEWNET), "setns", path);
  set_ipv6("eth0", "accept_ra", "0");
  checked(setns(home_netns, CLONE_NEWNET), "setns", "home");
  ask_for_addresses(inside);
  configure(inside, eth0, address);
  close(inside);
  close(netns);
  return opened;
}

static void delete_link(const char *name) {
  begin_link(RTM_DELLINK, 0, if_nametoindex(name), 0);
  end();
  exchange(kernel, name, NULL, NULL);
}

int main(int argc, char **argv) {
  if (argc != 4) return 64;
  home_netns = checked(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), "open", "namespace");
  kernel = open_netlink();
  bridge = if_nametoindex(argv[1]);
  group = strtoul(argv[2], NULL, 10);
  inet_pton(AF_INET, argv[3], &gateway);
  char line[512], verb[8], name[IFNAMSIZ], mac[18], path[256], address[16];
  while (fgets(line, sizeof line, stdin) != NULL) {
    int words = sscanf(line, "%7s %15s %17s %255s %15s", verb, name, mac, path, address);
    double started = now_us(), opened = started;
    if (words == 3 && strcmp(verb, "tap") == 0) make_tap(name, mac);
    else if (words == 5 && strcmp(verb, "veth") == 0) opened = make_veth(name, mac, path, address);
    else if (words == 2 && strcmp(verb, "delete") == 0) delete_link(name);
    else return 64;
    double ended = now_us();
    printf("%.1f %.1f\n", ended - started, ended - opened);
    fflush(stdout);
  }
  return 0;
}
