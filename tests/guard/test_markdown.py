from featherweight.guard.markdown import markdown_report
from featherweight.report import Report


def test_tables_facts_and_notes_stand_in_the_text_and_a_bar_in_a_cell_breaks_no_row():
    report = Report("Guard")
    report.add_table("Rates", ["rows", "rate (%)"], [["a|b", 1.5], ["c", None]])
    report.add_facts({"AUROC": 0.5}, "Quality")
    report.add_note("Read this.", "Limits")
    report.add_curves("ROC", "x", "y", {"one": ([0, 1], [0, 1])})
    text = markdown_report(report)
    assert "| a\\|b | 1.500 |" in text and "- AUROC: 0.5" in text and "## Limits\n\nRead this." in text
    assert "ROC" not in text.replace("AUROC", "")
