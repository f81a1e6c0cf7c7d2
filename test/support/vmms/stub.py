"""What two VMMs do with a TAP at their start, in their order, since they are in no package of Debian. Not VMMs: no guest runs.

firecracker: src/vmm/src/devices/virtio/net/tap.rs (open_named) and device.rs (new, activate) of Firecracker.
cloud-hypervisor: net_util/src/open_tap.rs, tap.rs (open_named, from_tap_fd, enable) of Cloud Hypervisor.

Then asks by ARP, through virtio's header, for the gateway of `ip=` of the guest's command line. Says JSON of what came of it.
"""

import fcntl, json, os, re, select, socket, struct, sys, time

TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
TUNGETIFF, TUNGETFEATURES = 0x800454D2, 0x800454CF
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCGIFMTU, IFF_UP = 0x8913, 0x8914, 0x8921, 1
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE = 0x2, 0x1000, 0x4000, 0x100
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_UFO = 1, 2, 4, 16
VNET_HDR = 12


def fail(what, error=None):
    code = os.strerror(error.errno) + " (os error %d)" % error.errno if error else ""
    sys.exit("%s: %s: %s" % (sys.argv[1], what, code))


def ifreq(name, flags=0):
    return bytearray(struct.pack("16sH22x", name.encode(), flags))


def open_named(name, queues):
    try:
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        fail("OpenTun", error)
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if queues > 1 else 0)
    try:
        fcntl.ioctl(tun, TUNSETIFF, ifreq(name, flags))
    except OSError as error:
        fail("ConfigureTap %s" % name, error)
    return tun


def set_header(tun):
    fcntl.ioctl(tun, TUNSETVNETHDRSZ, struct.pack("i", VNET_HDR))


def option(name):
    return sys.argv[sys.argv.index(name) + 1]


def firecracker():
    with open(option("--config-file")) as file:
        config = json.load(file)
    [nic] = config["network-interfaces"]
    tun = open_named(nic["host_dev_name"], 1)
    set_header(tun)
    # When the guest has acknowledged its features.
    fcntl.ioctl(tun, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_UFO | TUN_F_TSO4 | TUN_F_TSO6)
    return [tun], nic["guest_mac"], config["boot-source"]["boot_args"]


def cloud_hypervisor():
    net = dict(re.findall(r"(\w+)=(\[[^\]]*\]|[^,]*)", option("--net")))
    queues = int(net.get("num_queues", "2"))
    pairs = queues // 2
    taps = by_fd(net, pairs) if "fd" in net else by_name(net["tap"], pairs)
    fcntl.ioctl(taps[0], TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_UFO | TUN_F_TSO4 | TUN_F_TSO6)
    return taps, net["mac"], option("--cmdline")


def by_fd(net, pairs):
    taps = [int(fd) for fd in net["fd"].strip("[]").split(",")]
    if len(taps) != pairs:
        fail("VnetQueueFdMismatch %d, %d" % (len(taps), pairs))
    for tap in taps:
        if tap <= 2:
            fail("VnetReservedFd")
        fcntl.fcntl(tap, fcntl.F_SETFL, fcntl.fcntl(tap, fcntl.F_GETFL) | os.O_NONBLOCK)
        request = ifreq("")
        fcntl.ioctl(tap, TUNGETIFF, request)
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if pairs > 1 else 0)
        try:
            fcntl.ioctl(tap, TUNSETIFF, request[:16] + struct.pack("H22x", flags))
        except FileExistsError:
            pass
        set_header(tap)
    return taps


def by_name(name, pairs):
    try:
        with open("/sys/class/net/%s/tun_flags" % name) as file:
            multi = int(file.read(), 16) & IFF_MULTI_QUEUE != 0
        if multi and pairs == 1:
            fail("MultiQueueNoDeviceSupport")
        if not multi and pairs > 1:
            fail("MultiQueueNoTapSupport")
    except FileNotFoundError:
        pass
    taps = []
    for _ in range(pairs):
        tap = open_named(name, pairs)
        fcntl.ioctl(tap, TUNGETFEATURES, bytearray(4))
        if not taps:
            with socket.socket(socket.AF_UNIX) as sock:
                request = ifreq(name)
                fcntl.ioctl(sock, SIOCGIFFLAGS, request)
                if not struct.unpack_from("H", request, 16)[0] & IFF_UP:
                    fcntl.ioctl(sock, SIOCSIFFLAGS, ifreq(name, IFF_UP))
        set_header(tap)
        taps.append(tap)
    return taps


def arp(taps, mac, own, gateway):
    """Asks on each queue; the answer may come on any."""
    source = bytes.fromhex(mac.replace(":", ""))
    own, gateway = socket.inet_aton(own), socket.inet_aton(gateway)
    request = struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, 1, source, own, bytes(6), gateway)
    frame = b"\xff" * 6 + source + b"\x08\x06" + request
    end = time.monotonic() + 5
    while time.monotonic() < end:
        for tap in taps:
            os.write(tap, bytes(VNET_HDR) + frame)
        ready, _, _ = select.select(taps, [], [], 0.5)
        for tap in ready:
            reply = os.read(tap, 65536)[VNET_HDR:]
            if reply[12:14] == b"\x08\x06" and reply[20:22] == b"\0\2" and reply[28:32] == gateway:
                return True
    return False


def main():
    taps, mac, command_line = firecracker() if sys.argv[1] == "firecracker" else cloud_hypervisor()
    request = ifreq("")
    fcntl.ioctl(taps[0], TUNGETIFF, request)
    name = request[:16].rstrip(b"\0").decode()
    address, _, gateway, *_ = re.search(r"\bip=(\S+)", command_line).group(1).split(":")
    answered = arp(taps, mac, address, gateway)
    print(json.dumps({"tap": name, "queues": len(taps), "mac": mac, "gatewayAnswered": answered}))


main()
