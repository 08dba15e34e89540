# Fetch the data sets that data.dvc tracks from the default DVC remote.
rule data:
    input:
        "data.dvc",
    output:
        [item.path for item in DATA.values()],
    log:
        "results/data.log",
    localrule: True
    conda:
        "../../environment.yml"
    message:
        "fetching the data sets"
    shell:
        "atlas-job fetch > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"
