"""Memory budgets that fail the pull request: `memprof gate`, `memprof diff`, the pytest plugin.

The modules, in the order in which a gate uses them:

    config_file, config, limits    read the budgets from `[tool.memprof]` or memprof.toml
    measure, measure_fits          run the entries in workers of one fork server
    entry_figures, metrics         hold the figures of each entry and optimizer as flat data
    baseline                       holds the accepted figures: a sorted JSON file in the repository
    judge, verdict                 compare figures with limits and baseline, as pure functions
    explain, wording               say which category and which module grew
    run, report                    do all of this in order and make the report
    formats                        write the report as a table, JUnit, annotations, Markdown or benchmark points

`init` writes a first budget, `diff` compares two saved comparisons, and `test_marker` checks budgets of pytest tests.
Only `measure` and `measure_fits` start processes, and nothing here imports torch.

On GitHub, use the action in `.github/actions/memprof`. GitLab reads the JUnit report, and its runner needs no GPU
either:

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
