"""Memory budgets that fail the pull request: `memprof gate`, `memprof diff`, the pytest plugin.

From configuration to exit code:

    toml, config, limits    what is asked: `[tool.memprof]` or memprof.toml
    measure, figures        what is so: one fork server, flat figures per entry and optimizer
    baseline                what was accepted: a sorted JSON file in the repository
    verdicts                pure functions of these three
    explain                 which category and which module grew
    session, document       all of it in order, and the report that it makes
    formats                 the report as table, JUnit, annotations, Markdown, benchmark points

Only `measure` starts processes, and nothing here imports torch.

GitHub: the action in `.github/actions/memprof`. GitLab reads the JUnit report, and the runner needs no GPU either:

    memory-budget:
      image: python:3.12
      script:
        - pip install torch sm3-memprof
        - memprof gate --export-junit memprof.xml --export-markdown memprof.md
      artifacts:
        when: always
        reports:
          junit: memprof.xml
        paths: [memprof.md]
"""
