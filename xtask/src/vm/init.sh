#!/bin/busybox sh
# The virtual machine's first process: loads what reaching the host's files takes, then puts a
# memory file system over them and goes on there (init2.sh).
/bin/busybox --install -s /bin
export PATH=/bin

fail() {
    echo "init: $1" >/dev/console
    reboot -f
}

mkdir -p /proc /sys /dev /host /over /new
mount -t proc proc /proc || fail "no /proc"
mount -t sysfs sysfs /sys || fail "no /sys"
mount -t devtmpfs dev /dev || fail "no /dev"
for module in $(cat /modules/order); do
    insmod "/modules/$module" || fail "cannot load $module"
done
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose host /host ||
    fail "cannot mount the host's files"
mount -t tmpfs -o size=75% over /over || fail "no tmpfs"
mkdir /over/upper /over/work
mount -t overlay -o lowerdir=/host,upperdir=/over/upper,workdir=/over/work root /new ||
    fail "no overlay"

for directory in proc sys dev run; do
    mkdir -p "/new/$directory"
done
mount --move /proc /new/proc
mount --move /sys /new/sys
mount --move /dev /new/dev
mount -t tmpfs -o mode=755 run /new/run
mkdir /new/run/vm
cp /bin/busybox /init2.sh /settings.sh /job.sh /new/run/vm/
exec switch_root /new /run/vm/busybox sh /run/vm/init2.sh
fail "switch_root failed"
