// Package service is the agent as a Windows service: registered, started and stopped by the service control manager. It runs
// what it is given and knows nothing of mitigations.
package service

import "time"

// Name and its texts.
const (
	Name        = "StopgapAgent"
	displayName = "Stopgap Agent"
	description = "Applies emergency mitigations for Microsoft Exchange that your security operations centre has signed, and takes them off again."
)

// StopWithin is how long the service has to stop; what is half done then is finished at the next start, by the journal.
const StopWithin = 5 * time.Second
