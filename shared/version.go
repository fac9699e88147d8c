// Package shared is the parent of what controller and agent must agree on; of itself it holds only the version.
package shared

// Version of Stopgap, MAJOR.MINOR.PATCH. Documents name a minimum of it in requires.agent.
const Version = "1.1.0"
