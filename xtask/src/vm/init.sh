#!/bin/sh
# The guest's PID 1 (busybox). Results go out over the second serial port, the verdict over the console.
export PATH=/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tracefs trace /sys/kernel/tracing
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ifconfig lo 127.0.0.1 up
ip addr add ::1/128 dev lo 2>/dev/null
mkdir -p /tmp/out
uptime() { cut -d' ' -f1 /proc/uptime; }
printf '\nWHY502-UP %s %s\n' "$(uname -r)" "$(uptime)"
sh /test.sh >/tmp/out/test.log 2>&1
rc=$?
cat /tmp/out/test.log
dmesg >/tmp/out/dmesg
# 300 kB/s: keep it small.
stty -F /dev/ttyS1 raw -echo
tar -C /tmp/out -czf - . >/dev/ttyS1
printf '\nWHY502-EXIT rc=%s tainted=%s uptime=%s\n' "$rc" "$(cat /proc/sys/kernel/tainted)" "$(uptime)"
poweroff -f
