// Command nothing does nothing: its start and exit show what the Go runtime alone
// takes, whatever a program does with it.
package main

func main() {}
