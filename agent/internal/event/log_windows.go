package event

import (
	"errors"
	"fmt"

	"golang.org/x/sys/windows/registry"
	"golang.org/x/sys/windows/svc/eventlog"
)

type windowsLog struct{ l *eventlog.Log }

// Open opens the Windows event log.
func Open() (Log, error) {
	l, err := eventlog.Open(Source)
	if err != nil {
		return nil, fmt.Errorf("event log: %w", err)
	}
	return windowsLog{l}, nil
}

// Write implements Log.
func (w windowsLog) Write(id ID, s Severity, text string) error {
	switch s {
	case Error:
		return w.l.Error(uint32(id), text)
	case Warning:
		return w.l.Warning(uint32(id), text)
	case Info:
	}
	return w.l.Info(uint32(id), text)
}

const sourceKey = `SYSTEM\CurrentControlSet\Services\EventLog\Application\` + Source

// Register makes the event source; once more does nothing.
func Register() error {
	if k, err := registry.OpenKey(registry.LOCAL_MACHINE, sourceKey, registry.QUERY_VALUE); err == nil {
		return k.Close()
	}
	return eventlog.InstallAsEventCreate(Source, eventlog.Info|eventlog.Warning|eventlog.Error)
}

// Unregister removes the event source. Events in the log stay, with less readable texts; so uninstalling leaves it.
func Unregister() error {
	if err := eventlog.Remove(Source); err != nil && !errors.Is(err, registry.ErrNotExist) {
		return err
	}
	return nil
}
