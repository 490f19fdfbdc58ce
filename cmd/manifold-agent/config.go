package main

import (
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/manifold-cni/manifold/internal/agent"
)

const configUsage = `usage: manifold-agent config convert [--agent-config FILE] FILE
       manifold-agent config validate FILE
`

// config serves the commands on configuration files.
func config(args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 || args[0] != "convert" && args[0] != "validate" {
		fmt.Fprint(stderr, configUsage)
		return flag.ErrHelp
	}
	flags := flag.NewFlagSet("manifold-agent config "+args[0], flag.ContinueOnError)
	flags.SetOutput(stderr)
	agentFile := ""
	if args[0] == "convert" {
		flags.StringVar(&agentFile, "agent-config", "", "`file` to write the agent's configuration to")
	}
	if err := flags.Parse(args[1:]); err != nil || flags.NArg() != 1 {
		fmt.Fprint(stderr, configUsage)
		return flag.ErrHelp
	}
	path := flags.Arg(0)
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if args[0] == "validate" {
		return validate(path, raw, stdout)
	}
	return convert(raw, agentFile, stdout, stderr)
}

// convert prints the plugin's configuration, and on stderr what was changed.
func convert(raw []byte, agentFile string, stdout, stderr io.Writer) error {
	c, err := agent.Convert(raw)
	if err != nil {
		return err
	}
	for _, change := range c.Changes {
		fmt.Fprintln(stderr, change)
	}
	if agentFile != "" {
		if err := os.WriteFile(agentFile, append(c.Agent, '\n'), 0o600); err != nil {
			return err
		}
		fmt.Fprintln(stderr, "the agent's configuration is in", agentFile)
	}
	_, err = fmt.Fprintf(stdout, "%s\n", c.Plugin)
	return err
}

// validate prints what is wrong, one line each, and fails unless all of it is
// harmless.
func validate(path string, raw []byte, stdout io.Writer) error {
	wrong := 0
	for _, f := range agent.ValidateConfig(raw) {
		fmt.Fprintf(stdout, "%s:%s\n", path, f)
		if !f.Warning {
			wrong++
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%s: %d errors", path, wrong)
	}
	return nil
}
