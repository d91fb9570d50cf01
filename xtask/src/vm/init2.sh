# Second half of the first process, with the host's files in place: mounts what a running system
# has, runs the job and reports how it ended.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
busybox=/run/vm/busybox
. /run/vm/settings.sh

mkdir -p /dev/pts /dev/shm /run/lock /run/netns
mount -t devpts -o ptmxmode=666,mode=600 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mkdir -p /lib/modules
mount --bind "$modules" /lib/modules
$busybox ip link set lo up
$busybox hostname vm

for port in /sys/class/virtio-ports/*; do
    if [ "$($busybox cat "$port/name")" = output ]; then
        output=/dev/${port##*/}
    fi
done

# The host's shell: busybox would put its own applets before the host's programs.
/bin/sh /run/vm/job.sh >"$output" 2>&1 </dev/null
status=$?
# One stream, so the status cannot overtake the output. The host ends the machine on reading it.
$busybox printf '\000vm-status:%d\n' "$status" >"$output"
$busybox sleep 10
$busybox reboot -f
