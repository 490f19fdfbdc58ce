// Command nothing does nothing: what starting and ending it takes is the Go
// runtime's alone, whatever a program does with it.
package main

func main() {}
