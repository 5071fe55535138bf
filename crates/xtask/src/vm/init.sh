#!/bin/busybox sh
# The guest's first process: mounts what systemd would, runs the tests, powers off.
/bin/busybox --install -s /bin
ln -s /bin/modprobe /sbin/modprobe
export PATH=/bin:/usr/bin:/sbin:/usr/sbin HOME=/root ISOPOD_TEST_KUBECTL=/usr/bin/kubectl ISOPOD_TEST_HELM=/usr/bin/helm
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount --make-rshared /
hostname guest

# A network device with a default route, as hosts have; what is sent there vanishes.
modprobe dummy numdummies=0
ip link set lo up
ip link add nic0 type dummy
ip addr add 192.0.2.2/24 dev nic0
ip link set nic0 up
ip route add default via 192.0.2.1

# This machine may be used up: tests of `isopod server` need not hide from it.
export ISOPOD_TEST_ON_HOST=1
failed=0
RUN_TESTS
sync
echo "MARKER $failed"
poweroff -f
