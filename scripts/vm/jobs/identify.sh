#!/bin/sh
# What xtent says of a controller and its namespaces equals what nvme-cli said before; namespaces that cannot be
# used are rejected with an error that names them; a health warning that QEMU raises is reported.
# vm: --smp 2 --hugepages 32 --nvme size=64M,slot=4,serial=MANY -- -blockdev null-co,node-name=b2,size=67108864,read-zeroes=on -device nvme-ns,drive=b2,bus=nvme0,nsid=2,logical_block_size=4096,physical_block_size=4096 -blockdev null-co,node-name=b3,size=67108864,read-zeroes=on -device nvme-ns,drive=b3,bus=nvme0,nsid=3,ms=8 -blockdev null-co,node-name=b4,size=67108864,read-zeroes=on -device nvme-ns,drive=b4,bus=nvme0,nsid=4,ms=8,pi=1 -blockdev null-co,node-name=b5,size=67108864,read-zeroes=on -device nvme-ns,drive=b5,bus=nvme0,nsid=5,zoned=on,zoned.zone_size=4M
set -eu
disk=0000:00:04.0

wrong() {
    echo "WRONG: $*"
    exit 1
}

# fields FILE: the fields of pretty-printed JSON, a line each: name:value.
fields() { tr -d ' ",' <"$1"; }

# field FILE NAME [N]: the Nth value of that name, or the first.
field() { fields "$1" | sed -n "s/^$2://p" | sed -n "${3:-1}p"; }

# same WHAT OURS THEIRS
same() {
    [ -n "$2" ] || wrong "$1: xtent says nothing"
    [ "$2" = "$3" ] || wrong "$1: xtent says $2, nvme-cli $3"
}

for node in /sys/bus/pci/devices/"$disk"/nvme/nvme*; do
    controller=/dev/${node##*/}
done
nvme smart-log "$controller" -o json >/tmp/smart
nvme error-log "$controller" -o json >/tmp/errors
nvme fw-log "$controller" -o json >/tmp/firmware
nvme id-ctrl "$controller" -o json >/tmp/controller
for nsid in 1 2 3 4 5; do
    nvme id-ns "$controller" -n "$nsid" -o json >"/tmp/namespace-$nsid"
done

sh ./vfio-setup.sh bind --force "$disk" "$disk"
./xtent smart "pci:$disk"
./xtent smart "pci:$disk" --json >/tmp/our-smart
for name in critical_warning temperature avail_spare spare_thresh percent_used \
    data_units_read data_units_written host_read_commands host_write_commands controller_busy_time power_cycles \
    power_on_hours unsafe_shutdowns media_errors num_err_log_entries warning_temp_time critical_comp_time; do
    same "smart $name" "$(field /tmp/our-smart "$name")" "$(field /tmp/smart "$name")"
done
# Entries that are none have the count 0, which xtent leaves out.
same "error entries" "$(fields /tmp/our-smart | grep -c '^error_count:')" \
    "$(fields /tmp/errors | grep '^error_count:' | grep -cv ':0$')"
same "active firmware" "$(field /tmp/our-smart active)" "$(fields /tmp/firmware | sed -n 's/^ActiveFirmwareSlot(afi)://p')"

# Which namespace is meant was not said: the controller is shown all the same.
result=0
./xtent info "pci:$disk" --json >/tmp/our-info || result=$?
[ "$result" = 3 ] || wrong "info ended with $result"
same serial "$(field /tmp/our-info serial)" "$(field /tmp/controller sn)"
same model "$(field /tmp/our-info model)" "$(field /tmp/controller mn)"
same firmware "$(field /tmp/our-info firmware)" "$(field /tmp/controller fr)"
same "controller id" "$(field /tmp/our-info controller_id)" "$(field /tmp/controller cntlid)"
same "vendor" "$(field /tmp/our-info vendor_id)" "$(field /tmp/controller vid)"
same "error log" "$(field /tmp/our-info error_log_entries)" $(($(field /tmp/controller elpe) + 1))
same "event requests" "$(field /tmp/our-info event_requests)" $(($(field /tmp/controller aerl) + 1))
same "warning temperature" "$(field /tmp/our-info warning_temperature_k)" "$(field /tmp/controller wctemp)"
same "critical temperature" "$(field /tmp/our-info critical_temperature_k)" "$(field /tmp/controller cctemp)"
same "atomic writes" "$(field /tmp/our-info normal_blocks)" $(($(field /tmp/controller awun) + 1))
same "atomic writes, power" "$(field /tmp/our-info power_fail_blocks)" $(($(field /tmp/controller awupf) + 1))
same transfer "$(field /tmp/our-info max_transfer_bytes)" $((4096 << $(field /tmp/controller mdts)))
for nsid in 1 2 3 4 5; do
    same "namespace $nsid" "$(field /tmp/our-info nsid "$nsid")" "$nsid"
    same "blocks of $nsid" "$(field /tmp/our-info blocks "$nsid")" "$(field /tmp/namespace-$nsid nsze)"
    same "used of $nsid" "$(field /tmp/our-info used_blocks "$nsid")" "$(field /tmp/namespace-$nsid nuse)"
done

# refused NSID WORDS: the namespace is refused, by this reason.
refused() {
    result=0
    said=$(./xtent ls "pci:$disk/$1" / 2>&1) || result=$?
    echo "$said"
    [ "$result" = 3 ] || wrong "namespace $1: status $result"
    case $said in
    *"$2"*) ;;
    *) wrong "namespace $1 is not refused as: $2" ;;
    esac
}
refused 3 "8 bytes of metadata"
refused 4 "protection information type 1"
refused 5 "zoned namespace"
./xtent bench --raw "pci:$disk/2" --rw randread --bs 4k --number-ios 100

# The spare is low, says QEMU; the reader is told while it reads.
./xtent bench --raw "pci:$disk/1" --rw randread --bs 4k --runtime 9 --time-based >/tmp/bench 2>/tmp/heard &
reader=$!
sleep 4
echo '@@HOST {"execute": "qom-set", "arguments": {"path": "/machine/peripheral/nvme0", "property": "smart_critical_warning", "value": 4}}'
wait "$reader"
cat /tmp/heard
grep -q 'event: health: critical warning reliability-degraded' /tmp/heard || wrong "the warning was not heard"
result=0
./xtent smart "pci:$disk" --check --errors 0 || result=$?
[ "$result" = 1 ] || wrong "smart --check ended with $result"
