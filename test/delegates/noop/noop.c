/*
 * noop is a delegate that does nothing, as fast as a program can: what the
 * benchmarks measure with it is everybody else. It is not in Go, whose runtime
 * alone takes longer to start than all else that is measured.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char result[] = "{\"cniVersion\":\"1.0.0\",\"ips\":[]}";

int main(void)
{
	const char *verb = getenv("CNI_COMMAND");

	if (verb && !strcmp(verb, "ADD") && write(1, result, sizeof(result) - 1) < 0)
		return 1;
	return 0;
}
