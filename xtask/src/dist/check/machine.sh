# Boots a copy of this system whose changes are thrown away: sh machine.sh FOLDER, in new namespaces.
# FOLDER has inside.sh, which is tried in there, and gets what that tells.
folder=$1
mount --make-rprivate /
mkdir "$folder/space"
mount -t tmpfs -o mode=755 space "$folder/space"
mkdir "$folder/space/upper" "$folder/space/work" "$folder/space/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/space/upper,workdir=$folder/space/work" "$folder/space/root"
cd "$folder/space/root"

# What is the kernel's, and not a namespace's, is only read: systemd would set sysctls and have devices announced again.
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 dev dev
for device in null zero full random urandom tty; do
    : >"dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
ln -s /proc/self/fd dev/fd
# PrivateDevices= shows these.
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=1777 shm dev/shm
mount -t tmpfs -o mode=755 run run
mount -t tmpfs tmp tmp
mkdir -p check
mount --bind "$folder" check

# Nothing of a whole boot but the journal.
for place in lib/systemd etc/systemd; do
    for target in sysinit basic sockets timers paths local-fs multi-user; do
        rm -rf "$place/system/$target.target.wants"
    done
done
rm -f etc/systemd/system/why502.service etc/systemd/system/*.wants/why502.service
for target in sysinit basic; do
    printf '[Unit]\nDescription=nothing\n' >"etc/systemd/system/$target.target"
done
cat >etc/systemd/system/check.service <<'UNIT'
[Unit]
DefaultDependencies=no
Wants=systemd-journald.service
After=systemd-journald.service systemd-journald.socket
[Service]
Type=oneshot
Environment=LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
ExecStart=/bin/sh -u /check/inside.sh
StandardOutput=append:/check/log
StandardError=append:/check/log
ExecStopPost=/bin/systemctl --no-block --force exit
UNIT
# Where no systemd runs, as while an image is built.
if chroot . sh -c 'dpkg -i /check/why502.deb && why502 --version && ! test -e /run/systemd && dpkg -P why502' >>check/log 2>&1; then
    echo "ok          installs and is purged where no systemd runs" >>check/told
else
    echo "FAILED      installs and is purged where no systemd runs" >>check/told
fi
# Images of containers forbid packages to start services, as this machine may.
rm -f usr/sbin/policy-rc.d
rm -f etc/machine-id
echo 00000000000000000000000000000502 >etc/machine-id
export container=why502-check
exec chroot . /lib/systemd/systemd --unit=check.service --log-target=null --show-status=0 </dev/null
