from pneumo_dist.ranks.processes import die_with_agent

# Before the imports that take seconds, during which the agent may be killed.
die_with_agent()

from pneumo_dist.cli.app import main  # noqa: E402

if __name__ == "__main__":
    main()
