rule data:
    """Fetch the data sets that data.dvc tracks from the default DVC remote."""
    message:
        "fetching the data sets"
    input:
        "data.dvc",
    output:
        [item.path for item in DATA.values()],
    log:
        "results/data.log",
    conda:
        "../../environment.yml"
    shell:
        "python -m dvc pull --force data.dvc > {log} 2>&1"


localrules:
    data,
