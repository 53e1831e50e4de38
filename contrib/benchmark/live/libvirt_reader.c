/*
 * Asks libvirt for what small schedulers ask: each cycle the running guests, and of each its info,
 * its vCPUs and its CPU statistics. Prints a dot a cycle. The yardstick of what the daemon costs.
 *
 *     libvirt_reader URI PERIOD_MS
 */
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define CPUS_MAX 1024
#define VCPUS_MAX 256
#define STATISTICS_MAX 8

static void stay_silent(void *data, virErrorPtr error)
{
	(void)data;
	(void)error;
}

static void read_guest(virDomainPtr guest)
{
	static virVcpuInfo vcpus[VCPUS_MAX];
	static unsigned char maps[VCPUS_MAX * VIR_CPU_MAPLEN(CPUS_MAX)];
	virTypedParameter statistics[STATISTICS_MAX] = {0};
	virDomainInfo info;
	int count;

	if (virDomainGetInfo(guest, &info) < 0 || info.nrVirtCpu > VCPUS_MAX)
		return;
	virDomainGetVcpus(guest, vcpus, info.nrVirtCpu, maps, VIR_CPU_MAPLEN(CPUS_MAX));
	/* Of all pCPUs together. Without cgroups libvirtd refuses it. */
	count = virDomainGetCPUStats(guest, statistics, STATISTICS_MAX, -1, 1, 0);
	if (count > 0)
		virTypedParamsClear(statistics, count);
}

int main(int argc, char **argv)
{
	virConnectPtr connection;
	struct timespec next;
	long period_ms;

	if (argc != 3 || (period_ms = atol(argv[2])) <= 0)
		return 2;
	virSetErrorFunc(NULL, stay_silent);
	connection = virConnectOpen(argv[1]);
	if (connection == NULL)
		return 1;
	clock_gettime(CLOCK_MONOTONIC, &next);
	for (;;) {
		virDomainPtr *guests;
		int count = virConnectListAllDomains(connection, &guests, VIR_CONNECT_LIST_DOMAINS_ACTIVE);

		if (count < 0)
			return 1;
		for (int number = 0; number < count; number++) {
			read_guest(guests[number]);
			virDomainFree(guests[number]);
		}
		free(guests);
		if (write(STDOUT_FILENO, ".", 1) != 1)
			return 1;
		next.tv_nsec += period_ms % 1000 * 1000000;
		next.tv_sec += period_ms / 1000 + next.tv_nsec / 1000000000;
		next.tv_nsec %= 1000000000;
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
	}
}
