package procs

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Usage reads what the kernel knows of a process: resident memory in KiB, and processor time, to 10 ms. Source: proc(5).
func Usage(pid int) (rssKiB float64, cpu time.Duration, err error) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		return 0, 0, err
	}
	for _, line := range strings.Split(string(status), "\n") {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			if rssKiB, err = strconv.ParseFloat(strings.Fields(rest)[0], 64); err != nil {
				return 0, 0, err
			}
		}
	}
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return 0, 0, err
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(after)
	if len(f) < 13 {
		return 0, 0, fmt.Errorf("%sstat is short", dir)
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100
	for _, i := range []int{11, 12} {  // user, system
		n, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return 0, 0, err
		}
		cpu += time.Duration(n) * tick
	}
	return rssKiB, cpu, nil
}
