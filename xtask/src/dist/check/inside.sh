# What is tried with the Debian package, as root of a machine whose PID 1 is systemd. One line for each thing in /check/told;
# "done" comes last.
deb=/check/why502.deb
told() { echo "$*" >>/check/told; }
skipped() { told "skipped     $1: $2 is not installed"; }
failed() {
    told "FAILED      $*"
    systemctl status --no-pager --full --lines=20 why502.service
}
# WHAT COMMAND...
must() {
    what=$1
    shift
    if "$@"; then told "ok          $what"; else failed "$what ($*)"; fi
}
# The same, within half a minute.
soon() {
    what=$1
    shift
    tries=0
    until "$@"; do
        tries=$((tries + 1))
        [ $tries -lt 120 ] || break
        sleep 0.25
    done
    must "$what" "$@"
}
not() { ! "$@"; }
has() { command -v "$1" >/dev/null; }
prop() { systemctl show why502.service -p "$1" --value; }
active() { systemctl is-active --quiet why502.service; }
enabled() { systemctl is-enabled --quiet why502.service; }
# The agent that runs now has said that every lost request is seen, and serves.
works() {
    active && journalctl -q "_PID=$(prop MainPID)" -o cat | grep -qx ready &&
        why502 incidents --url http://127.0.0.1:9502 -o json >/dev/null
}
status() { sed -n "s/^$1:[[:space:]]*//p" "/proc/$(prop MainPID)/status"; }
is() { [ "$1" = "$2" ] || { echo "$1, not $2" && false; }; }

dpkg -P why502 2>/dev/null
traces() { find / -xdev -name '*why502*' -not -path '/tmp/*' -not -path '/check*' -not -path '/var/cache/man/*' | sort; }
traces >/tmp/before

must "installs" dpkg -i "$deb"
must "every file is there and whole" dpkg -V why502
must "is enabled" enabled
soon "runs, with its probes attached" works

# --- what the unit gives it: CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, CAP_PERFMON, CAP_BPF and no more
for set in CapPrm CapEff CapBnd CapAmb; do
    must "$set is the four capabilities" is "$(status $set)" 000000c000080004
done
must "another user than root" not is "$(status Uid | cut -f1)" 0
must "no new privileges" is "$(status NoNewPrivs)" 1
must "system calls are filtered" is "$(status Seccomp)" 2
must "the unit is well-formed" sh -c '! systemd-analyze verify /lib/systemd/system/why502.service 2>&1 | grep why502'
told "            systemd-analyze security: $(systemd-analyze security --no-pager why502.service | tail -1 | sed 's/.*: //')"
told "            memory $(($(sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$(prop MainPID)/status") / 1024)) MiB"

# --- beside the program
if has mandoc; then
    for page in /usr/share/man/man1/why502*.1.gz; do
        zcat "$page" | mandoc -T lint -W error >/tmp/lint 2>&1 || cat /tmp/lint
        must "mandoc: ${page##*/} has no error" not grep -q . /tmp/lint
    done
else
    skipped "manual pages by mandoc" mandoc
fi
if has man; then
    for page in /usr/share/man/man1/why502*.1.gz; do
        name=${page##*/}
        MANWIDTH=80 man --warnings=w "${name%.1.gz}" >/tmp/page 2>/tmp/warnings
        must "man: ${name%.1.gz} is shown without a warning" sh -c "test -s /tmp/page && ! grep . /tmp/warnings"
    done
else
    skipped "manual pages by man" man
fi
offers() { grep -qw incidents /tmp/offered && ! grep -qw watch /tmp/offered; }
bash -c 'source /usr/share/bash-completion/completions/why502 && COMP_WORDS=(why502 in) COMP_CWORD=1 && _why502 why502 in why502 &&
    printf "%s\n" "${COMPREPLY[@]}"' >/tmp/offered
must "bash completes \`why502 in\`" offers
if has zsh; then
    # The completion system finds it by its folder, and its functions load.
    zsh -f -c 'fpath=(/usr/share/zsh/vendor-completions $fpath); autoload -Uz compinit && compinit -u -D && echo $_comps[why502] &&
        autoload +X _why502 && echo loaded' >/tmp/offered
    must "zsh completes why502" is "$(tr '\n' ' ' </tmp/offered)" "_why502 loaded "
else
    skipped "completion in zsh" zsh
fi
if has fish; then
    HOME=/tmp fish -c 'complete -C "why502 in"' >/tmp/offered
    must "fish completes \`why502 in\`" offers
else
    skipped "completion in fish" fish
fi

must "kubectl finds its plugin" sh -c 'kubectl-why502 --help | grep -q "kubectl why502"'

# --- upgrade: the administrator's options stay, the agent is the new one
echo 'OPTIONS="--store-size 64M"' >/etc/default/why502
dpkg-deb -R "$deb" /tmp/newer
sed -i 's/^Version: .*/&+newer/' /tmp/newer/DEBIAN/control
dpkg-deb -Zgzip -z1 -b /tmp/newer /tmp/newer.deb >/dev/null
older=$(prop MainPID)
must "upgrades" dpkg -i /tmp/newer.deb
soon "runs after the upgrade" works
must "was started again" not is "$(prop MainPID)" "$older"
must "its options were kept, and are used" grep -qz -- 64M "/proc/$(prop MainPID)/cmdline"

# --- who disabled it keeps it so
systemctl disable --now why502.service
must "upgrades while it is disabled" dpkg -i "$deb"
must "stays disabled" not enabled
must "stays stopped" not active
systemctl enable --now why502.service
soon "runs when it is enabled again" works

# --- options that it does not understand: one try, and dpkg does not mind
echo 'OPTIONS="--no-such-option"' >/etc/default/why502
must "dpkg does not mind a service that fails" dpkg -i "$deb"
soon "the service says that it failed" is "$(prop Result)" exit-code
must "and is not tried for ever" is "$(prop NRestarts)" 0
echo 'OPTIONS="--store-size 64M"' >/etc/default/why502

# --- remove and purge
systemctl restart why502.service
soon "runs with its options mended" works
agent=$(prop MainPID)
must "is removed" dpkg -r why502
must "its agent is gone" not test -e "/proc/$agent"
must "the program is gone" not test -e /usr/bin/why502
must "its options are kept" grep -q 64M /etc/default/why502
must "its store is kept" test -d /var/lib/private/why502
must "installs again" dpkg -i "$deb"
soon "runs again, with the same options and store" works
must "is purged" dpkg -P why502
traces >/tmp/after
must "nothing of it is left" diff /tmp/before /tmp/after
told done
